"""The process of a search: one trial after another, in one MLflow run with a run below it for each trial.

    python -m finetune_pipeline.train.search.job job.json        # a SearchSpec (spec.py)

The base model is loaded once; what holds for several trials is computed once (train/shared.py). Finished trials are in
a journal (study.py), so that a search whose process was killed goes on; the MLflow run of its trial ends as KILLED when
what the process left is delivered (tracking/). Only training and validation rows are read.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from finetune_pipeline import tracking
from finetune_pipeline.backends import worker
from finetune_pipeline.config import Range
from finetune_pipeline.errors import JobCanceled, TrainingFailed
from finetune_pipeline.records import PartReporter, Reporter, content_id, read_jsonl
from finetune_pipeline.store import machine_lock
from finetune_pipeline.train.method import load_base
from finetune_pipeline.train.search.choice import best_of
from finetune_pipeline.train.search.space import as_declared, is_log
from finetune_pipeline.train.search.spec import SearchResult, SearchSpec, TrialRecord
from finetune_pipeline.train.search.study import Study
from finetune_pipeline.train.search.trial import TrialContext, run_trial
from finetune_pipeline.train.shared import Shared

JOURNAL = "trials.jsonl"


def run(spec: SearchSpec, report: Reporter) -> SearchResult:
    """Compare trainings. TrainingFailed when no trial was completed; ModelError, StorageError; JobCanceled."""
    with alone(spec.folder, report):
        return _search(spec, report)


def alone(folder: Path, report: Reporter) -> AbstractContextManager[None]:
    """One process at a time uses the journal: also where Ray or Kubernetes starts it, in a folder of its own for each
    launch, and the one of a killed run has not ended yet. Across machines as far as they share the home folder."""
    waiting = "an earlier process of this search still works; waiting for it"
    return machine_lock(f"search-{content_id(str(folder))[:16]}", report, waiting)


def _search(spec: SearchSpec, report: Reporter) -> SearchResult:
    rules, search = spec.training.rules, spec.search
    declared = as_declared(rules, search.parameters)
    study = Study(spec.folder / JOURNAL, search, rules.seed, declared)
    if found := study.records:
        report.log(f"resuming the search after {len(found)} of {study.trials} trials")
    params = {**spec.training.params, "search.trials": study.trials, "search.metric": search.metric}
    tags = {"data": spec.training.dataset_digest, "search": "training_search"}
    with tracking.training_run(spec.training.task, study.run_id, params, tags, report) as parent:
        study.run_id = parent.run_id
        limited = _trials(spec, study, parent, report)
    result = SearchResult(
        declared=True,
        metric=search.metric,
        checks=search.checks,
        trials=tuple(study.records),
        importance=study.importance(),
        as_declared=declared,
        logarithmic=tuple(n for n, t in search.parameters.declared().items() if isinstance(t, Range) and is_log(n, t)),
        validation_rows=sum(1 for _ in read_jsonl(spec.training.validation)),
        interrupted=study.interruptions,
        limited=limited,
        mlflow_run_id=parent.run_id,
        mlflow_experiment_id=parent.experiment_id,
    )
    best = best_of(result.trials, search.metric)
    if best is None:
        reasons = {trial.reason for trial in result.trials if trial.reason}
        raise TrainingFailed(
            f"none of {len(result.trials)} trials was completed: {'; '.join(sorted(reasons)) or 'no time was left'}",
            "lower the learning rates or the batch sizes in `search.parameters`, or raise `search.hours`",
        )
    return replace(result, best=best.number)


def _trials(spec: SearchSpec, study: Study, parent: tracking.Run, report: Reporter) -> bool:
    """Run what is left of the trials; whether the limit of hours ended them before."""
    search, shared, records = spec.search, None, study.records
    while (time_left := _time_left(spec, records)) and len(records) < study.trials:
        report.alive()
        shared = shared or Shared(load_base(spec.training.base, spec.training.rules), several=True)
        number = len(records) + 1
        reporter = PartReporter(report, f"trial {number} of {study.trials}")
        if not _tried(study, number, TrialContext(spec, shared, parent.run_id, reporter)):
            break
        records = study.records
        best = best_of(records, search.metric)
        figures = {"best_trial": float(best.number), "best_validation_loss": best.loss or 0.0} if best else {}
        parent.log_metrics({"trials": float(number), **figures}, number)
        report.log(_line(records[-1], best))
        report.progress("search", number, study.trials)
    return not time_left and len(records) < study.trials


def _tried(study: Study, number: int, context: TrialContext) -> bool:
    """Run the next trial; whether there was one."""
    asked = study.ask()
    if asked is None:
        return False
    trial, values = asked
    try:
        record = run_trial(trial, values, number, context)
    except JobCanceled:
        study.put_back(trial)
        raise
    study.tell(trial, record)
    return True


def _time_left(spec: SearchSpec, records: list[TrialRecord]) -> bool:
    hours = spec.search.hours
    return hours is None or sum(record.seconds for record in records) < 3600 * hours


def _line(record: TrialRecord, best: TrialRecord | None) -> str:
    loss = "" if record.loss is None else f", validation loss {record.loss:.4f}"
    values = ", ".join(f"{name} {value}" for name, value in record.values.items())
    return f"trial {record.number} ({values}): {record.state}{loss}; best: {best.number if best else 'none'}"


if __name__ == "__main__":
    worker.main(run, SearchSpec)
