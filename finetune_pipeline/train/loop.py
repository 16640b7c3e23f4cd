"""The training loop: AdamW, warm-up and cosine, gradient clipping, checkpoints; stops when the loss diverges.

    Loop(packed, weights, rules, bf16, folder, report, log_metrics).run(train, validation, TrainingState(), optimizer)

The loss of a batch is in packing.py, the order of the rows in schedule.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.errors import JobCanceled, TrainingFailed
from finetune_pipeline.models.device import autocast
from finetune_pipeline.records import Reporter
from finetune_pipeline.train import checkpoint
from finetune_pipeline.train.checkpoint import HistoryLine, TrainingState
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.replay import Replay
from finetune_pipeline.train.schedule import batch_at, learning_rate_at, micro_batches, total_steps
from finetune_pipeline.train.tokenize import TokenizedExample

BETAS = (0.9, 0.999)
SMOOTHING = 0.9  # of the exponential moving average of the loss
SMOOTHED_STEPS = 50
FIRST_CHECKED_STEP = 20  # for divergence: the loss of a few steps says nothing


@dataclass
class Loop:
    """One training. `weights`: the trainable tensors by name; `folder`: of the checkpoints; `log_metrics`: gets metrics
    and step (MLflow); `replay`: the general texts of each step, or None."""

    model: PackedModel
    weights: Mapping[str, Any]
    rules: Train
    bf16: bool
    folder: Path
    report: Reporter
    log_metrics: Callable[[dict[str, float], int], None]
    replay: Replay | None = None

    def run(
        self,
        train: Sequence[TokenizedExample],
        validation: Sequence[TokenizedExample],
        state: TrainingState,
        optimizer: Any,
    ) -> None:
        """Train from `state` to the last step. TrainingFailed when the loss is not finite or diverges; JobCanceled,
        after writing a checkpoint, when the run was canceled."""
        total = total_steps(len(train), self.rules)
        per_epoch = math.ceil(len(train) / self.rules.batch_size)
        if state.step == 0 and not state.history:
            state.history.append({"step": 0, "validation_loss": self.validate(validation)})
        saved = started = time.monotonic()
        seconds_before = state.seconds
        while state.step < total:
            try:
                self.report.alive()
            except JobCanceled:
                checkpoint.save(self.folder, state, self.weights, optimizer)
                raise
            line = self._step(train, state.step, total, optimizer)
            state.step += 1
            state.seconds = seconds_before + time.monotonic() - started
            state.history.append(line)
            if state.step % per_epoch == 0 or state.step == total:
                line["validation_loss"] = self.validate(validation)
            self._check_divergence(state)
            self.log_metrics(_metrics(line), state.step)
            self.report.progress("training", state.step, total, loss=line["loss"])
            if time.monotonic() - saved >= self.rules.checkpoint_seconds and state.step < total:
                checkpoint.save(self.folder, state, self.weights, optimizer)
                saved = time.monotonic()

    def _step(self, train: Sequence[TokenizedExample], step: int, total: int, optimizer: Any) -> HistoryLine:
        import torch

        torch.manual_seed(self.rules.seed + step)  # dropout depends on the step, not on previous computations
        rate = learning_rate_at(step, total, self.rules)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = [train[index] for index in batch_at(step, len(train), self.rules)]
        started = time.monotonic()
        loss, divergence = self._backward(batch, step)
        norm = float(torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.rules.max_grad_norm))
        _require_finite("loss", loss, step + 1)  # before it changes the weights, and a checkpoint with them
        _require_finite("gradient norm", norm, step + 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens = sum(len(row.ids) for row in batch)  # rows with their whole prompt, as other trainers count them
        line: HistoryLine = {
            "step": step + 1,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "tokens_per_second": tokens / (time.monotonic() - started),
        }
        if divergence is not None:
            line["general_divergence"] = divergence
        return line

    def _backward(self, batch: Sequence[TokenizedExample], step: int) -> tuple[float, float | None]:
        """Accumulate the gradient of a batch; its loss per supervised token, and the divergence of the general texts
        (None without), in nats."""
        supervised = sum(len(row.completion) for row in batch)
        loss, divergence = 0.0, None
        general = self.replay.texts_at(step) if self.replay else []
        for rows in micro_batches(batch, self.model.prefix_tokens, self.rules.max_tokens_per_batch):
            with autocast(self.bf16):
                summed, hidden = self.model.forward(rows, general)
            loss += float(summed.detach()) / supervised
            objective = summed / supervised
            if self.replay and general:
                mean = self.replay.divergence(step, hidden)
                objective = objective + self.replay.weight * mean
                general, divergence = [], float(mean.detach())  # with the first micro-batch only
            objective.backward()
        return loss, divergence

    def validate(self, rows: Sequence[TokenizedExample]) -> float:
        """Mean negative log likelihood (nats) per supervised token of the validation rows; 0 without rows."""
        import torch

        total, count = 0.0, 0
        with torch.no_grad(), autocast(self.bf16), self.model.without_dropout():
            for part in micro_batches(rows, self.model.prefix_tokens, self.rules.max_tokens_per_batch):
                loss, supervised = self.model.loss(part)
                total, count = total + float(loss), count + supervised
        return total / max(1, count)

    def _check_divergence(self, state: TrainingState) -> None:
        """TrainingFailed when the smoothed loss exceeds `divergence_factor` times the loss of the first step."""
        first = next(line["loss"] for line in state.history if "loss" in line)
        smoothed = first
        for line in state.history[-SMOOTHED_STEPS:]:
            smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * line.get("loss", first)
        if state.step >= FIRST_CHECKED_STEP and smoothed > self.rules.divergence_factor * first:
            raise TrainingFailed(
                f"the loss diverges: {smoothed:.3f} at step {state.step}, {first:.3f} at the start",
                "lower `train.learning_rate`, or raise `train.warmup_ratio`",
            )


def _metrics(line: HistoryLine) -> dict[str, float]:
    return {name: value for name, value in line.items() if name != "step" and isinstance(value, float)}


def _require_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise TrainingFailed(
            f"the {what} is {value} at step {step}; the step was not applied",
            "lower `train.learning_rate`, or set `train.precision: fp32`; the last checkpoint is not affected",
        )
