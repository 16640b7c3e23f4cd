"""When a training ends before its last step: without a better validation loss, or with a loss that says it fails.

best = count_validation(state, validation_loss, patience=3, report=report)  # may set state.stopped
count_skipped(state, ["row1"], loss=math.nan, norm=1.0, report=report)  # TrainingFailed after MAX_SKIPPED in a row
require_convergence(state, factor=3.0)  # TrainingFailed when the loss diverges
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.records import Reporter
from finetune_pipeline.train.checkpoint import TrainingState

MAX_SKIPPED = 5  # steps in a row without a finite loss and gradient
SMOOTHING = 0.9  # of the exponential moving average of the loss
SMOOTHED_STEPS = 50
START_STEPS = 10
FIRST_CHECKED_STEP = 20  # for divergence: the loss of a few steps says nothing


def count_validation(state: TrainingState, validation_loss: float, patience: int | None, report: Reporter) -> bool:
    """Note a validation; whether its loss is the lowest so far, which one that is not finite never is. After `patience`
    in a row that are not, the training stops, with a line in the log."""
    if not math.isfinite(validation_loss):
        report.log(f"the validation loss at step {state.step} is {validation_loss}")
    elif state.best_loss is None or validation_loss < state.best_loss:
        state.best_loss, state.best_step, state.without_gain = validation_loss, state.step, 0
        return True
    state.without_gain += 1
    if patience is not None and state.without_gain >= patience:
        state.stopped = True
        lowest = "never finite"
        if state.best_loss is not None:
            lowest = f"lowest at step {state.best_step} ({state.best_loss:.4f}; now {validation_loss:.4f})"
        report.log(f"stopped at step {state.step}: the validation loss was {lowest}")
    return False


def count_skipped(state: TrainingState, rows: Sequence[str], loss: float, norm: float, report: Reporter) -> None:
    """Count and log a step that was not applied; `rows`: the ids of its batch, `norm`: of the gradient. TrainingFailed
    when there were MAX_SKIPPED in a row."""
    state.skipped += 1
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
    report.log(f"step {state.step + 1} was skipped: {what} (rows {', '.join(rows[:3])} …)")
    recent = state.history[-MAX_SKIPPED + 1 :]
    if len(recent) == MAX_SKIPPED - 1 and all("skipped" in line for line in recent):
        first = next((line["step"] for line in state.history if "skipped" in line), state.step + 1)
        raise TrainingFailed(
            f"{what} at step {state.step + 1}, as in the {MAX_SKIPPED - 1} steps before; first at step {first}; no "
            "such step was applied",
            "lower `train.learning_rate`, or set `train.precision: fp32`; the last checkpoint is not affected",
        )


def require_convergence(state: TrainingState, factor: float) -> None:
    """TrainingFailed when the smoothed loss exceeds `factor` times that of the start: the loss of the first step, or
    the median of the first steps, because the first batch alone may be an easy one."""
    losses = [line["loss"] for line in state.history if "loss" in line][:START_STEPS]
    if not losses:
        return
    first = max(losses[0], statistics.median(losses))
    smoothed = first
    for line in state.history[-SMOOTHED_STEPS:]:
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * line.get("loss", smoothed)
    if state.step >= FIRST_CHECKED_STEP and smoothed > factor * first:
        raise TrainingFailed(
            f"the loss diverges: {smoothed:.3f} at step {state.step}, {first:.3f} at the start",
            "lower `train.learning_rate`, or raise `train.warmup_ratio`",
        )
