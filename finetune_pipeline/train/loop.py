"""The training loop: AdamW on the adapter's weights, warm-up and cosine, clipping, checkpoints, an eye on the loss.

What it is not: the loss of a batch (packing.py), the order of the rows (schedule.py), the process it runs in (job.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.errors import JobCancelled, TrainingFailed
from finetune_pipeline.models.device import autocast
from finetune_pipeline.records import Reporter
from finetune_pipeline.train import checkpoint
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.replay import Replay
from finetune_pipeline.train.schedule import batch_at, pieces, rate_at, total_steps
from finetune_pipeline.train.tokenize import Encoded

SMOOTHING = 0.9
BETAS = (0.9, 0.999)


@dataclass
class Loop:
    """One training. `weights`: the trainable tensors by name; `tell`: where metrics go (MLflow), by step; `replay`: the
    general texts of each step, None for none."""

    model: PackedModel
    weights: Mapping[str, Any]
    rules: Train
    prefix: int
    bf16: bool
    folder: Path
    report: Reporter
    tell: Callable[[dict[str, float], int], None]
    replay: Replay | None = None

    def run(
        self, train: Sequence[Encoded], validation: Sequence[Encoded], state: checkpoint.State, optimizer: Any
    ) -> None:
        """Train from `state` to the end. TrainingFailed when the loss is not finite or diverges; JobCancelled after a
        checkpoint when the run was stopped."""
        total = total_steps(len(train), self.rules)
        per_epoch = math.ceil(len(train) / self.rules.batch_size)
        if state.step == 0 and not state.history:
            state.history.append({"step": 0, "validation_loss": self.validate(validation)})
        saved = began = time.monotonic()
        before = state.seconds
        while state.step < total:
            try:
                self.report.alive()
            except JobCancelled:
                checkpoint.save(self.folder, state, self.weights, optimizer)
                raise
            line = self._step(train, state.step, total, optimizer)
            state.step += 1
            state.seconds = before + time.monotonic() - began
            state.history.append({"step": state.step, **line})
            if state.step % per_epoch == 0 or state.step == total:
                state.history[-1]["validation_loss"] = self.validate(validation)
            self._watch(state)
            self.tell({k: v for k, v in state.history[-1].items() if k != "step"}, state.step)
            self.report.progress("training", state.step, total, loss=line["loss"])
            if time.monotonic() - saved >= self.rules.checkpoint_seconds and state.step < total:
                checkpoint.save(self.folder, state, self.weights, optimizer)
                saved = time.monotonic()

    def _step(self, train: Sequence[Encoded], step: int, total: int, optimizer: Any) -> dict[str, float]:
        import torch

        torch.manual_seed(self.rules.seed + step)  # dropout depends on the step, not on what ran before
        rate = rate_at(step, total, self.rules)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = [train[place] for place in batch_at(step, len(train), self.rules)]
        supervised = sum(len(row.answer) for row in batch)
        started, loss, kept = time.monotonic(), 0.0, {}
        general = self.replay.at(step) if self.replay else []
        for piece in pieces(batch, self.prefix, self.rules.max_tokens_per_batch):
            with autocast(self.bf16):
                part, hidden = self.model.forward(piece, general)
            loss += float(part.detach()) / supervised
            objective = part / supervised
            if self.replay and general:
                divergence = self.replay.divergence(step, hidden)
                objective = objective + self.replay.weight * divergence
                general, kept = [], {"general_divergence": float(divergence.detach())}  # with the first piece alone
            objective.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.rules.max_grad_norm)
        _finite("loss", loss, step + 1)  # before the weights take it on, and with them a checkpoint
        _finite("gradient norm", float(norm), step + 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(row.ids) for row in batch)  # as a plain trainer counts them: every row with its instruction
        return {
            "loss": loss,
            "gradient_norm": float(norm),
            "learning_rate": rate,
            "tokens_per_second": tokens / (time.monotonic() - started),
            **kept,
        }

    def validate(self, rows: Sequence[Encoded]) -> float:
        """Mean negative log likelihood (nats) of a supervised token of the validation rows."""
        import torch

        total, count = 0.0, 0
        with torch.no_grad(), autocast(self.bf16), self.model.without_dropout():
            for piece in pieces(rows, self.prefix, self.rules.max_tokens_per_batch):
                loss, supervised = self.model.loss(piece)
                total, count = total + float(loss), count + supervised
        return total / max(1, count)

    def _watch(self, state: checkpoint.State) -> None:
        """Stop a training that cannot end well, and say when it went wrong."""
        first = next(line["loss"] for line in state.history if "loss" in line)
        smooth = first
        for line in state.history[-50:]:
            smooth = SMOOTHING * smooth + (1 - SMOOTHING) * line.get("loss", first)
        if state.step >= 20 and smooth > self.rules.divergence_factor * first:
            raise TrainingFailed(
                f"the loss diverges: {smooth:.3f} at step {state.step}, from {first:.3f} at the start",
                "lower `train.learning_rate`, or raise `train.warmup_ratio`",
            )


def _finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingFailed(
            f"the {what} is {value} at step {step}; the step was not taken",
            "lower `train.learning_rate`, or set `train.precision: fp32`; the last checkpoint is not affected",
        )
