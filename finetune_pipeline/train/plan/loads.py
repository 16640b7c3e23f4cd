"""What a training will compute, counted from its token ids: every step that is looked at, as the loop divides it.

    counted = count(forward, rules, rows, validation, replay, objective)
    counted.loads             # TrainingLoads of the whole training
    counted.largest           # Load of the largest pass

Of long trainings, STEPS steps evenly over all are looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.training_load import NOTHING, Load, TrainingLoads
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.memory_fit import largest_pass
from finetune_pipeline.train.objective import Objective
from finetune_pipeline.train.packing import CACHE_BYTES
from finetune_pipeline.train.replay import Replay
from finetune_pipeline.train.schedule import rows_at, steps_per_epoch, total_steps, validates_at
from finetune_pipeline.train.tokenize import TokenizedExample

STEPS = 64

Rows = Sequence[TokenizedExample]


@dataclass(frozen=True)
class Counted:
    """`steps`, `validations`: their number; `loads`: of the whole training; `largest`: of the largest pass, `longest`:
    of the longest row alone; `parts`: micro-batches of the largest batch."""

    steps: int
    validations: int
    loads: TrainingLoads
    largest: Load
    longest: Load
    parts: int


def count(
    forward: Forward,
    architecture: Architecture,
    rules: Train,
    bf16: bool,
    rows: Rows,
    validation: Rows,
    replay: Replay | None,
    objective: Objective,
) -> Counted:
    """All of a training on `rows`. `forward`: of any model of this family, also without weights."""
    total = total_steps(len(rows), rules)
    looked_at = sorted({total * n // STEPS for n in range(STEPS)}) if total > STEPS else range(total)
    sampled = step_loads(forward, rows, replay, rules, looked_at)
    steps = Load.sum(sampled).times(total / len(sampled))
    validations = 1 + sum(validates_at(step, len(rows), rules) for step in range(1, total + 1)) if validation else 0
    validated = passes_load(forward, validation, rules).times(validations)
    general = {text.id: text for step in range(total) for text in replay.texts_at(step)} if replay else {}
    base = [passes_load(forward, list(general.values()), rules)]
    if objective.uses_reference:
        base.append(passes_load(forward, [*rows, *validation], rules).times(2 if objective.uses_divergence else 1))
    if objective.uses_divergence:  # the completions of other rows, in every step
        base.append(steps)
    first = min(1.0, steps_per_epoch(len(rows), rules) / total)
    frozen = steps.times(first + (1 - first) * (1 - _kept(architecture, steps.times(first), bf16)))
    largest, longest, parts = largest_pass(forward, rows, replay.longest if replay else [], rules)
    return Counted(total, validations, TrainingLoads(steps, frozen, validated, Load.sum(base)), largest, longest, parts)


def step_loads(forward: Forward, rows: Rows, replay: Replay | None, rules: Train, steps: Iterable[int]) -> list[Load]:
    """Of these optimizer steps of a training on `rows`."""
    return [
        step_load(forward, rows_at(step, rows, rules), replay.texts_at(step) if replay else [], rules) for step in steps
    ]


def step_load(forward: Forward, batch: Rows, texts: Rows, rules: Train) -> Load:
    """Of one optimizer step: its micro-batches, the general texts in the first (loop.py)."""
    parts = forward.micro_batches(batch, rules.max_tokens_per_batch)
    first = forward.load([*parts[0], *texts], len(texts))
    return Load.sum([first, *(forward.load(part) for part in parts[1:])])


def passes_load(forward: Forward, rows: Rows, rules: Train) -> Load:
    """Of forward passes of all rows."""
    if not rows:
        return NOTHING
    return Load.sum(forward.load(part) for part in forward.micro_batches(rows, rules.max_tokens_per_batch))


def _kept(architecture: Architecture, epoch: Load, bf16: bool) -> float:
    """The share of the outputs of frozen layers that fit into their cache after the first epoch."""
    size = epoch.tokens * architecture.hidden * (2 if bf16 else 4)
    return min(1.0, CACHE_BYTES / size) if size else 1.0
