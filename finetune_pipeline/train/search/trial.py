"""One trial: a training with the values of the trial, in an MLflow run of its own below that of the search.

    record = run_trial(trial, values, number, context)      # TrialRecord(number=3, state="pruned", …)

It is the training that `adapter` would run with these settings: the same rows, seed, schedule and validations. Beside
those, the validation loss is measured at `search.checks` places evenly over its steps, where a trial that is worse than
the others ends. Its weights are not kept.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_pipeline import tracking
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.models.device import release_memory
from finetune_pipeline.records import Reporter
from finetune_pipeline.train.assembly import TrainingSetup, assemble
from finetune_pipeline.train.checkpoint import HistoryLine, TrainingState
from finetune_pipeline.train.forward import without_dropout
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.schedule import total_steps
from finetune_pipeline.train.search.space import Values, applied
from finetune_pipeline.train.search.spec import SearchSpec, TrialRecord
from finetune_pipeline.train.shared import Shared
from finetune_pipeline.train.spec import TrainingSpec
from finetune_pipeline.train.validation import scorer

NO_CHECKPOINTS = 1e9  # seconds between them: a trial is begun again, and not resumed


@dataclass(frozen=True)
class TrialContext:
    """What the trials of a search share. `parent`: the id of the search's MLflow run."""

    spec: SearchSpec
    shared: Shared
    parent: str
    report: Reporter


class Pruned(Exception):
    """The trial is worse than others were at the same check."""


def run_trial(trial: Any, values: Values, number: int, context: TrialContext) -> TrialRecord:
    """Train and measure. `trial`: an optuna.trial.Trial. JobCanceled, and errors that every trial would have; a loss
    that diverges or does not fit into memory makes a failed trial."""
    folder = context.spec.folder / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    spec = trial_spec(context.spec, values, folder)
    setup = assemble(spec, context.report, shared=context.shared)
    if not setup.rows["validation"]:
        raise TrainingFailed("a search compares on validation rows, and there are none", "raise `split.validation`")
    try:
        setup.measure_base(context.report)
        return _trained(trial, TrialRecord(number, "failed", values), spec, setup, context)
    finally:
        setup.trainable.release()
        del setup
        release_memory()
        shutil.rmtree(folder, ignore_errors=True)


def trial_spec(spec: SearchSpec, values: Mapping[str, Any], folder: Path) -> TrainingSpec:
    """The training of a trial, which writes to `folder` only."""
    rules = applied(spec.training.rules, values).model_copy(update={"checkpoint_seconds": NO_CHECKPOINTS})
    if spec.search.metric != "score":  # only the score is measured with the kept weights
        rules = rules.model_copy(update={"validation": rules.validation.model_copy(update={"keep": "last"})})
    return replace(
        spec.training,
        rules=rules,
        checkpoints=folder / "steps",
        out=folder,
        share=float(values.get("row_share", spec.training.share)),
        without_sources=tuple(values.get("without_sources", spec.training.without_sources)),
        params={**spec.training.params, **values},
    )


def _trained(
    trial: Any, record: TrialRecord, spec: TrainingSpec, setup: TrainingSetup, context: TrialContext
) -> TrialRecord:
    state, started = TrainingState(), time.monotonic()
    tags = {"trial": str(record.number), "data": spec.dataset_digest}
    checks: list[float] = []
    record = replace(record, rows=len(setup.rows["train"]))
    run: tracking.Run | None = None
    try:
        with tracking.training_run(spec.task, None, spec.params, tags, context.report, context.parent) as run:
            try:
                _run_loop(trial, spec, setup, state, checks, context, run)
                record = _measured(record, spec, setup, state, context)
            except Pruned:
                record = replace(record, state="pruned", loss=checks[-1])
            finally:
                run.set_tags({"trial_state": record.state})
    except TrainingFailed as error:
        context.report.log(f"trial {record.number} failed: {error.message}")
        record = replace(record, reason=error.message)
    return replace(
        record,
        checks=tuple(checks),
        steps=state.step,
        seconds=round(time.monotonic() - started, 3),
        mlflow_run_id=run.run_id if run else None,  # known by now, if MLflow was away at the start
    )


def _run_loop(
    trial: Any,
    spec: TrainingSpec,
    setup: TrainingSetup,
    state: TrainingState,
    checks: list[float],
    context: TrialContext,
    run: tracking.Run,
) -> None:
    """Train to the end. Pruned when the pruner says so at a check before it."""
    train, validation = setup.rows["train"], setup.rows["validation"]
    steps = check_steps(total_steps(len(train), spec.rules), context.spec.search.checks)

    def on_step(metrics: dict[str, float], step: int) -> None:
        if step in steps:
            if "validation_loss" not in metrics:
                metrics = metrics | {"validation_loss": loop.validate(validation, state.max_tokens)["validation_loss"]}
            checks.append(metrics["validation_loss"])
            trial.report(checks[-1], len(checks))
        run.log_metrics(metrics, step)
        if step in steps[:-1] and trial.should_prune():
            raise Pruned

    loop: Loop = setup.loop(spec.checkpoints, context.report, on_step)
    loop.run(train, validation, state, setup.optimizer)


def check_steps(total: int, checks: int) -> list[int]:
    """The steps after which a trial is compared with others: as many for every trial as its steps allow."""
    return sorted({max(1, round(total * check / checks)) for check in range(1, checks + 1)})


def _measured(
    record: TrialRecord, spec: TrainingSpec, setup: TrainingSetup, state: TrainingState, context: TrialContext
) -> TrialRecord:
    """The completed trial, with what was measured of the weights that the training would keep."""
    best = context.spec.training.rules.validation.keep == "best"
    lines = [line for line in state.history if "validation_loss" in line]
    kept: HistoryLine = next((line for line in lines if best and line["step"] == state.best_step), lines[-1])
    if not math.isfinite(kept["validation_loss"]):
        raise TrainingFailed(
            f"the validation loss is {kept['validation_loss']} at step {kept['step']}", "lower the learning rate"
        )
    score = None
    if context.spec.search.metric == "score":
        ask = scorer(setup.trainable.model, setup.base, setup.examples, spec, context.report)
        if ask is None:
            raise TrainingFailed("there is no validation row to score", "use `search.metric: loss`")
        with without_dropout(setup.forward.model):
            score = ask()
    return replace(
        record,
        state="complete",
        loss=kept["validation_loss"],
        score=score,
        reward_accuracy=kept.get("validation_reward_accuracy"),
    )
