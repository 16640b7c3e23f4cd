"""What the history of a training says: whether it overfits, and from which step on.

overfits_from(history)      # 40: the validation loss was lowest there, and the training loss fell on
describe(training)          # "it overfits from step 40 on: …; the weights of step 40 were kept"
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_pipeline.train.checkpoint import HistoryLine
from finetune_pipeline.train.spec import TrainingResult

FEWEST_LOSSES = 5  # steps of a mean: a single batch says little


def overfits_from(history: Sequence[HistoryLine]) -> int | None:
    """The step of the lowest validation loss, if it is higher at the end although the training loss went on falling
    from there; else None. Training losses are compared as means over the steps between two validations."""
    validated = [line for line in history if "validation_loss" in line and line["step"] > 0]
    if len(validated) < 2:
        return None
    best, last = min(validated, key=lambda line: line["validation_loss"]), validated[-1]
    if last["validation_loss"] <= best["validation_loss"]:
        return None
    steps = max(FEWEST_LOSSES, last["step"] - validated[-2]["step"])
    then, now = _mean_loss(history, best["step"], steps), _mean_loss(history, last["step"], steps)
    return best["step"] if then is not None and now is not None and now < then else None


def describe(training: TrainingResult) -> str:
    """A sentence on overfitting; "" where there is none."""
    step, last = training.overfits_from, training.validation_loss_last
    if step is None or last is None:
        return ""
    kept = f"the weights of step {training.kept_step} were kept"
    if training.kept_step == training.steps:
        kept = "the last weights were kept all the same (`train.validation.keep: last`)"
    return (
        f"it overfits from step {step} on: the validation loss rose to {last:.3f} while the training loss went on "
        f"falling; {kept}"
    )


def _mean_loss(history: Sequence[HistoryLine], step: int, steps: int) -> float | None:
    """The mean loss of the last `steps` steps up to `step`."""
    losses = [line["loss"] for line in history if "loss" in line and step - steps < line["step"] <= step]
    return sum(losses) / len(losses) if losses else None
