"""Run a few steps of a training, to measure how fast it is and how much memory it takes; nothing of them is kept.

    probe, forward = measure(spec, outline, sample, before, report)
    probe.step_gflops

The steps are those of the training: its loop, forward pass, optimizer and general texts, on rows in its order. Before
them its largest batch is computed, which needs the most memory: on a GPU that is too small, its parts get smaller here,
and not after an hour.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psutil

from finetune_pipeline.config import Train
from finetune_pipeline.models.device import PeakDeviceMemory
from finetune_pipeline.models.training_work import forward_flops, step_flops
from finetune_pipeline.records import PartReporter, Reporter
from finetune_pipeline.train.assembly import TrainingSetup, assemble
from finetune_pipeline.train.checkpoint import TrainingState
from finetune_pipeline.train.forward import Forward, without_dropout
from finetune_pipeline.train.memory_fit import largest_batches
from finetune_pipeline.train.method import load_base
from finetune_pipeline.train.outline import Outline
from finetune_pipeline.train.plan.loads import passes_load, step_loads
from finetune_pipeline.train.plan.spec import PlanSpec, Probe
from finetune_pipeline.train.schedule import rows_at, total_steps
from finetune_pipeline.train.shared import Shared
from finetune_pipeline.train.spec import TrainingSpec
from finetune_pipeline.train.tokenize import TokenizedExample
from finetune_pipeline.train.validation import scorer

MOST_STEPS = 8
NEVER = 1e9  # seconds between checkpoints


@dataclass(frozen=True)
class Sample:
    """`steps` steps of `rows` rows each, timed; before them the largest batch of the training if `largest`; and a
    forward pass of `validation` validation rows."""

    steps: int
    rows: int
    largest: bool
    validation: int


def sample_of(batch_size: int, step: float, largest: float, validation_row: float, budget: float) -> Sample:
    """What takes about `budget` seconds, given the estimated seconds of a step of `batch_size` rows, of the largest
    one, and of a validation row. Fewer rows a step where two whole steps take too long."""
    validation = max(1, int(budget / 4 / validation_row)) if validation_row else 0
    if 2 * step > budget:
        return Sample(2, max(1, int(batch_size * budget / (2 * step))), False, validation)
    return Sample(min(MOST_STEPS, int(budget / step)), batch_size, largest <= budget, validation)


def measure(spec: PlanSpec, outline: Outline, sample: Sample, before: float, report: Reporter) -> tuple[Probe, Forward]:
    """What was measured, and the forward pass that the training uses. `before`: seconds that this process spent on what
    a training does not do."""
    training = replace(spec.training, rules=_short(spec.training.rules, sample.rows))
    report = PartReporter(report, "measuring")
    with PeakDeviceMemory() as peak:
        shared = Shared(load_base(training.base, training.rules), rows=dict(outline.rows))
        setup = assemble(training, report, shared=shared)
        start = time.time() - psutil.Process().create_time() - before
        rows = setup.rows["train"]
        every = min(sample.steps + 1, total_steps(len(rows), training.rules))
        batches = [rows_at(step, rows, training.rules) for step in range(every)]
        timed = [row for batch in batches[: sample.steps] for row in batch]
        first = largest_batches(rows, spec.training.rules)[0] if sample.largest else batches[-1]
        setup.rows = {"train": [*timed, *first], "validation": setup.rows["validation"][: sample.validation]}
        setup.measure_base(report)
        warm = TrainingState()
        _run(setup, first, spec, warm, report)
        seconds = _run(setup, timed, spec, TrainingState(max_tokens=warm.max_tokens), report)
        passes = _passes_seconds(setup, spec, warm.max_tokens, report)
        answers = _answers_seconds(setup, training, report)
    loads = step_loads(setup.forward, timed, setup.replay, setup.rules, range(len(seconds)))
    flops = step_flops(outline.architecture, training.rules, loads)
    validated = passes_load(setup.forward, setup.rows["validation"], setup.rules)
    probe = Probe(
        steps=len(seconds),
        rows=sample.rows,
        step_seconds=sum(seconds) / len(seconds),
        step_gflops=flops / sum(seconds) / 1e9,
        pass_gflops=forward_flops(outline.architecture, training.rules, validated) / passes / 1e9 if passes else 0.0,
        answers_seconds=answers,
        start_seconds=start,
        peak_mb=peak.mb,
        largest=sample.largest,
        max_tokens=warm.max_tokens,
        ran_out=warm.max_tokens < setup.rules.max_tokens_per_batch,
    )
    return probe, setup.forward


def _short(rules: Train, rows: int) -> Train:
    """The rules with `rows` rows a step, one epoch, and nothing written."""
    validation = rules.validation.model_copy(update={"keep": "last", "patience": None, "per_epoch": 1})
    changed = {"batch_size": rows, "num_epochs": 1.0, "checkpoint_seconds": NEVER, "validation": validation}
    return rules.model_copy(update=changed)


def _run(
    setup: TrainingSetup, rows: Sequence[TokenizedExample], spec: PlanSpec, state: TrainingState, report: Reporter
) -> list[float]:
    """Train on the rows, without validation; the seconds of every step."""
    seconds: list[float] = []
    loop = setup.loop(spec.folder / "steps", report, lambda metrics, step: None)
    loop.peak_share = lambda _, spent: seconds.append(spent) or 0.0  # type: ignore[func-returns-value]
    loop.run(rows, [], state, setup.optimizer)
    return seconds


def _passes_seconds(setup: TrainingSetup, spec: PlanSpec, max_tokens: int, report: Reporter) -> float:
    """Of a forward pass of the validation rows; 0 without any."""
    if not setup.rows["validation"]:
        return 0.0
    loop = setup.loop(spec.folder / "steps", report, lambda metrics, step: None)
    began = time.monotonic()
    loop.validate(setup.rows["validation"], max_tokens)
    return time.monotonic() - began


def _answers_seconds(setup: TrainingSetup, training: TrainingSpec, report: Reporter) -> float:
    """Of the answers to validation rows; 0 where none are given."""
    score = scorer(setup.trainable.model, setup.base, setup.examples, training, report)
    if score is None:
        return 0.0
    began = time.monotonic()
    with without_dropout(setup.forward.model):
        score()
    return time.monotonic() - began
