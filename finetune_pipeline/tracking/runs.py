"""One MLflow run per training: parameters, metrics, dataset, files; a resumed training continues its run.

    with training_run("support_tickets", state.run_id, {"lora.r": 16}) as run:
        run.log_metrics({"loss": 0.31}, step=12)

A run ends as FINISHED, FAILED, or KILLED (canceled, to be resumed). An MLflow that stops or hangs during a run does
not interrupt the training: metrics are sent by a separate thread and kept until they are accepted (tracking/outbox.py);
everything else is logged as a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.records import SILENT
from finetune_pipeline.store import machine_lock, mlflow_artifacts, mlflow_uri
from finetune_pipeline.tracking.client import connect, error_line, mlflow_call, mlflow_errors, none_if_missing
from finetune_pipeline.tracking.outbox import Metrics, Outbox

log = logging.getLogger("finetune.tracking")
LOCAL_HINT = "start it, or unset MLFLOW_TRACKING_URI to keep the runs on this machine; then run again"


@dataclass(frozen=True)
class Run:
    """An open run. `step` counts optimizer steps. No method blocks for long or raises when MLflow is down."""

    run_id: str
    experiment_id: str
    outbox: Outbox

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.outbox.put(metrics, step)

    def log_artifacts(self, folder: Path, path: str) -> None:
        """Copy the files of `folder` to `path` in the run. `registry.register` repeats it if this failed."""
        _warn_on_failure(path, lambda: connect().log_artifacts(str(folder), path, run_id=self.run_id))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, such as the state of a trial."""
        client = connect().MlflowClient()
        _warn_on_failure("tags", lambda: [client.set_tag(self.run_id, name, value) for name, value in tags.items()])

    def log_dataset(self, name: str, digest: str, rows: int) -> None:
        """Record the training data as the run's dataset, with its content hash as digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest[:36], "local", name, profile=f'{{"num_rows": {rows}}}')
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        _warn_on_failure("the dataset", lambda: connect().MlflowClient().log_inputs(self.run_id, datasets=inputs))


@contextmanager
def training_run(
    task: str,
    run_id: str | None,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    parent: str | None = None,
) -> Iterator[Run]:
    """Open a run in the task's experiment, or continue `run_id`; system metrics are recorded while it is open.
    `parent`: the id of an open run that this one is a part of (tag `mlflow.parentRunId`), which records them.

    `params` are logged once, for a new run. A `run_id` that was deleted in MLflow is replaced by a new run, so that a
    training does not depend on it. StorageError when MLflow is down at the start: better than after hours of training.
    """
    with mlflow_call("open a run", LOCAL_HINT):
        mlflow = connect()
        known = run_id if run_id and _exists(run_id) else None
        active = mlflow.start_run(
            run_id=known,
            experiment_id=experiment_id(task),
            tags=dict(tags or {}),
            log_system_metrics=parent is None,
            nested=parent is not None,
            parent_run_id=parent,
        )
        if known is None:
            mlflow.log_params(dict(params))
    open_id, status = active.info.run_id, "FINISHED"
    outbox = Outbox(lambda item: _warn_on_failure("metrics", lambda: _log_batch(open_id, item)))
    try:
        yield Run(open_id, str(active.info.experiment_id), outbox)
    except BaseException as error:
        status = "KILLED" if isinstance(error, JobCanceled) else "FAILED"
        raise
    finally:
        if unsent := outbox.close():
            log.warning("%s lines of metrics were not sent to MLflow: it does not accept them", unsent)
        _warn_on_failure("the run's end", lambda: mlflow.end_run(status))


def end_killed(run_id: str) -> None:
    """End a run whose process was killed as KILLED."""
    _warn_on_failure("the run's end", lambda: connect().MlflowClient().set_terminated(run_id, "KILLED"))


def experiment_id(task: str) -> str:
    """The id of the task's experiment, created if necessary. With SQLite its artifacts are in the home folder; a server
    has its own artifact store."""
    mlflow = connect()
    with machine_lock("mlflow", SILENT, "MLflow's database is in use"):
        experiment = mlflow.get_experiment_by_name(task)
        if experiment is not None:
            return str(experiment.experiment_id)
        local = mlflow_uri().startswith("sqlite:")
        return str(mlflow.create_experiment(task, (mlflow_artifacts() / task).as_uri() if local else None))


def _exists(run_id: str) -> bool:
    run = none_if_missing(lambda: connect().MlflowClient().get_run(run_id))
    return run is not None and bool(run.info.lifecycle_stage == "active")


def _log_batch(run_id: str, item: Metrics) -> None:
    from mlflow.entities import Metric

    metrics = [Metric(name, value, item.timestamp_ms, item.step) for name, value in item.values.items()]
    connect().MlflowClient().log_batch(run_id, metrics)


def _warn_on_failure(what: str, send: Callable[[], object]) -> bool:
    """Whether MLflow accepted it. A failure is logged as a warning, because the training has to continue."""
    try:
        send()
    except mlflow_errors() as error:
        log.warning("MLflow did not accept %s, and the run continues: %s", what, error_line(error))
        return False
    return True
