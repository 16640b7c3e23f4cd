"""The training loop: one optimizer step after another, for every method, objective and forward pass.

    Loop(setup, folder, report, log_metrics).run(train, validation, TrainingState(), optimizer)

What it computes is in objective.py, replay.py and the forward pass; the order of the rows is in schedule.py, and when
it ends early in stopping.py. A step whose loss or gradient is not finite is skipped before it changes a weight. When
the device runs out of memory, the step is computed again in smaller parts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from finetune_pipeline.config import Train
from finetune_pipeline.errors import JobCanceled, TrainingFailed
from finetune_pipeline.models.device import autocast, out_of_memory, release_memory
from finetune_pipeline.records import Reporter
from finetune_pipeline.train import best_weights, checkpoint
from finetune_pipeline.train.checkpoint import HistoryLine, TrainingState
from finetune_pipeline.train.distributed import Ranks
from finetune_pipeline.train.forward import Forward, targets, without_dropout
from finetune_pipeline.train.objective import FIGURES, Figures, Objective, Totals, completions_of, totals_of
from finetune_pipeline.train.reference import Reference
from finetune_pipeline.train.replay import Replay
from finetune_pipeline.train.schedule import learning_rate_at, rows_at, total_steps, validates_at
from finetune_pipeline.train.sharding import clip, refresh
from finetune_pipeline.train.stopping import count_skipped, count_validation, require_convergence
from finetune_pipeline.train.tokenize import TokenizedExample

MOST_SAVING = 0.05  # of the time, for checkpoints: those of full weights can take minutes
RANK_SEEDS = 1_000_003  # between the random seeds of the ranks
GENERAL = "general_divergence"
SHOWN = ("loss", "validation_loss", "validation_score", "learning_rate", "tokens_per_second", "peak_share")


@dataclass
class Loop:
    """One training. `weights`: the trainable tensors by name; `folder`: of the checkpoints; `log_metrics`: gets metrics
    and step (MLflow); `replay`: the general texts of each step; `reference`: of the objective; `score`: answers
    validation rows, and returns the share of right answers; `peak_share`: gets the rows and the seconds of a step, and
    returns the share of the device's peak for matrix products; `ranks`: the processes, each of which computes its share
    of every batch, and of which the first writes."""

    forward: Forward
    weights: Mapping[str, Any]
    rules: Train
    objective: Objective
    bf16: bool
    folder: Path
    report: Reporter
    log_metrics: Callable[[dict[str, float], int], None]
    replay: Replay | None = None
    reference: Reference | None = None
    score: Callable[[], float] | None = None
    ranks: Ranks = field(default_factory=Ranks)
    peak_share: Callable[[Sequence[TokenizedExample], float], float] | None = None
    _saved: float = field(default_factory=time.monotonic)
    _save_seconds: float = 0.0

    def run(
        self,
        train: Sequence[TokenizedExample],
        validation: Sequence[TokenizedExample],
        state: TrainingState,
        optimizer: Any,
    ) -> None:
        """Train from `state` to the last step, or until it no longer improves. TrainingFailed when the loss is not
        finite or diverges; JobCanceled, after writing a checkpoint, when the run was canceled."""
        total = total_steps(len(train), self.rules)
        limit = self.rules.max_tokens_per_batch
        state.max_tokens = min(state.max_tokens or limit, limit)  # that of the checkpoint, of this machine
        if state.step == 0 and not state.history:
            state.history.append({"step": 0, **self.validate(validation, state.max_tokens)})
            self.log_metrics(_metrics(state.history[0]), 0)
        validated = next((line for line in reversed(state.history) if "validation_loss" in line), HistoryLine())
        started, seconds_before = time.monotonic(), state.seconds
        while state.step < total and not state.stopped:
            if self.ranks.canceled(self.report):
                self._save(state, optimizer)
                raise JobCanceled("stopped on request", "run again to resume from the last checkpoint")
            line = self._step(train, state, total, optimizer)
            state.step += 1
            state.seconds = seconds_before + time.monotonic() - started
            state.history.append(line)
            if validates_at(state.step, len(train), self.rules):
                line.update(self.validate(validation, state.max_tokens))
                self._note_validation(state, line)
                validated = line
            require_convergence(state, self.rules.divergence_factor)
            self.log_metrics(_metrics(line) | {"seconds_left": _seconds_left(state, total)}, state.step)
            self._progress(state, total, validated)
            if state.step < total and self._checkpoint_due():
                self._save(state, optimizer)
        self.ranks.require_agreement(state.step, self.weights)
        if self.rules.validation.keep == "best" and state.best_step not in (0, state.step):
            self.ranks.barrier()  # the first rank has written it
            best_weights.restore(self.folder, state.best_step, self.weights)
            refresh(self.forward.model)

    def _checkpoint_due(self) -> bool:
        """By the clock; that of the first rank decides where all ranks have to take part."""
        between = self.rules.checkpoint_seconds
        due = time.monotonic() - self._saved >= (max(between, self._save_seconds / MOST_SAVING) if between else 0.0)
        return self.ranks.any(due and self.ranks.is_main) if self.ranks.sharded else due

    def _save(self, state: TrainingState, optimizer: Any) -> None:
        """Write a checkpoint."""
        began = time.monotonic()
        checkpoint.save(self.folder, state, self.weights, optimizer, self.ranks)
        self._saved = time.monotonic()
        self._save_seconds = self._saved - began

    def _step(self, train: Sequence[TokenizedExample], state: TrainingState, total: int, optimizer: Any) -> HistoryLine:
        rate = learning_rate_at(state.step, total, self.rules)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = rows_at(state.step, train, self.rules)
        started = time.monotonic()
        loss, figures, tokens = self._in_memory(batch, state)
        if not self.ranks.sharded:  # else they were summed in the backward pass
            self.ranks.sum_gradients(self.weights.values())
        norm = clip(self.weights.values(), self.rules.max_grad_norm)
        line: HistoryLine = {"step": state.step + 1, "learning_rate": rate}
        line.update(cast(HistoryLine, figures))
        if math.isfinite(loss) and math.isfinite(norm):
            optimizer.step()
            line["loss"], line["gradient_norm"] = loss, norm
        else:
            line["skipped"] = 1
            count_skipped(state, [row.id for row in batch], loss, norm, self.report)
        optimizer.zero_grad(set_to_none=True)
        seconds = time.monotonic() - started
        line["tokens_per_second"] = tokens / seconds
        if self.peak_share is not None:
            general = self.replay.texts_at(state.step) if self.replay else []
            line["peak_share"] = self.peak_share([*batch, *general], seconds)
        return line

    def _in_memory(self, batch: Sequence[TokenizedExample], state: TrainingState) -> tuple[float, Figures, int]:
        """`_backward`, again in smaller parts when memory runs out. TrainingFailed when a single row does not fit."""
        import torch

        totals = self._totals(batch)
        own = self.ranks.share(batch, [row.tokens for row in batch])
        while True:
            # dropout depends on the step, not on earlier computations
            torch.manual_seed(self.rules.seed + state.step + self.ranks.rank * RANK_SEEDS)
            try:
                loss, figures, tokens = self._backward(own, state, totals, batch[:1])
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if self.ranks.sharded:  # the other ranks wait within a pass that this one cannot repeat alone
                    raise TrainingFailed(
                        f"memory ran out at step {state.step + 1}, at {state.max_tokens} tokens at once",
                        "lower `train.max_tokens_per_batch`, or use more processes (`train.backend`)",
                    ) from error
            for weight in self.weights.values():
                weight.grad = None
            release_memory()
            parts = self.forward.micro_batches(own, state.max_tokens)
            if len(parts) == len(own):
                longest = max(own or batch, key=lambda row: row.tokens)
                raise TrainingFailed(
                    f"a single row does not fit into memory: {longest.id} with {longest.tokens} tokens",
                    "use `train.gradient_checkpointing: true`, `train.optimizer: adamw_8bit`, `train.method: qlora`, "
                    "fewer `train.layers`, shorter rows, a smaller model or a larger device",
                )
            largest = max(self.forward.computed_tokens(part) for part in parts)
            state.max_tokens = min(state.max_tokens, largest) // 2
            self.report.log(f"memory ran out at step {state.step + 1}; now at most {state.max_tokens} tokens at once")
        return self._over_ranks(loss, figures, tokens, totals)

    def _over_ranks(self, loss: float, figures: Figures, tokens: int, totals: Totals) -> tuple[float, Figures, int]:
        """Loss, figures and number of computed tokens of the whole batch, from the shares of all ranks."""
        names = [*FIGURES, GENERAL] if self.replay else FIGURES
        loss, count, *summed = self.ranks.sum([loss, float(tokens), *(figures.get(name, 0.0) for name in names)])
        found = dict(zip(names, summed, strict=True))
        general = {GENERAL: found.pop(GENERAL)} if self.replay else {}
        return loss, general | _means(found) | _divergence_of(totals), int(count)

    def _backward(
        self,
        batch: Sequence[TokenizedExample],
        state: TrainingState,
        totals: Totals | None = None,
        filler: Sequence[TokenizedExample] = (),
    ) -> tuple[float, Figures, int]:
        """Accumulate the gradient of rows: all of a batch, or this rank's of one with these `totals`; their share of
        its loss (without the general texts), sums of figures over their pairs, and the number of computed tokens."""
        totals = totals or self._totals(batch)
        loss, sums, tokens = 0.0, Figures(), 0
        general = self.replay.texts_at(state.step, self.ranks) if self.replay else []
        parts = self.forward.micro_batches(batch, state.max_tokens) or ([[]] if general else [])
        for rows, counts in self.ranks.even(parts, list(filler)):
            computed = [*rows, *general]
            with autocast(self.bf16):
                states = self.forward.states(computed)
                learned = sum(row.learned for row in rows)
                part, more = self._loss(rows, states[:learned], totals) if rows else (states.new_zeros(()), Figures())
            part, more = (part, more) if counts else (part * 0, Figures())
            loss += float(part.detach())
            _add(sums, more)
            if self.replay and general:
                divergence = self.replay.divergence(state.step, states[learned:], general)
                part = part + self.replay.weight * divergence
                general, sums[GENERAL] = [], float(divergence.detach())  # with the first part only
            part.backward()
            tokens += self.forward.computed_tokens(computed)
        return loss, sums, tokens

    def _totals(self, batch: Sequence[TokenizedExample]) -> Totals:
        uses = self.objective.uses_divergence and self.reference is not None
        return totals_of(batch, self.reference.divergence(batch) if uses and self.reference else 0.0)

    def _loss(self, rows: Sequence[TokenizedExample], states: Any, totals: Totals) -> tuple[Any, Figures]:
        losses = self.forward.token_losses(states, targets(rows))
        reference = self.reference.of(rows) if self.reference else None
        return self.objective.loss(completions_of(rows, losses, reference), totals)

    def validate(self, rows: Sequence[TokenizedExample], max_tokens: int) -> HistoryLine:
        """Loss of the validation rows (for sft: nats per learned token), reward accuracy of pairs, and the share of
        right answers, without dropout; 0 without rows."""
        import torch

        loss, sums = 0.0, Figures()
        own = self.ranks.share(rows, [row.tokens for row in rows])
        line: HistoryLine = {"validation_loss": 0.0}
        if not rows:
            return line
        with torch.no_grad(), without_dropout(self.forward.model):
            with autocast(self.bf16):
                totals = self._totals(rows)
                for part, counts in self.ranks.even(self.forward.micro_batches(own, max_tokens), list(rows[:1])):
                    value, more = self._loss(part, self.forward.states(part), totals)
                    loss += float(value) * counts
                    _add(sums, more if counts else Figures())
            loss, *summed = self.ranks.sum([loss, *(sums.get(name, 0.0) for name in FIGURES)])
            line["validation_loss"] = loss
            means = _means(dict(zip(FIGURES, summed, strict=True)))
            if means:
                line["validation_reward_accuracy"] = means["reward_accuracy"]
            if self.score is not None:
                line["validation_score"] = self.score()
        return line

    def _note_validation(self, state: TrainingState, line: HistoryLine) -> None:
        """Keep the weights if they are the best so far; stop when `train.validation.patience` is exhausted."""
        rules = self.rules.validation
        best = count_validation(state, line["validation_loss"], rules.patience, self.report)
        if best and rules.keep == "best":
            state.best_sha256 = best_weights.save(self.folder, state.step, self.weights, self.ranks)

    def _progress(self, state: TrainingState, total: int, validated: HistoryLine) -> None:
        """Report the figures of the last step, and those of the last validation."""
        line = {"loss": math.nan, **_metrics(validated), **_metrics(state.history[-1])}
        figures = {name: line[name] for name in SHOWN if name in line}
        self.report.progress("training", state.step, total, **figures, seconds_left=_seconds_left(state, total))


def _seconds_left(state: TrainingState, total: int) -> float:
    return state.seconds / state.step * (total - state.step)


def _metrics(line: HistoryLine) -> dict[str, float]:
    return {name: float(value) for name, value in line.items() if name != "step" and isinstance(value, int | float)}


def _add(sums: Figures, more: Figures) -> None:
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value


def _divergence_of(totals: Totals) -> Figures:
    return {"kto_divergence": totals.divergence} if totals.divergence else {}


def _means(sums: Figures) -> Figures:
    """Sums over pairs as means; {} without pairs."""
    pairs = sums.get("pairs", 0.0)
    return {name: value / pairs for name, value in sums.items() if name != "pairs"} if pairs else {}
