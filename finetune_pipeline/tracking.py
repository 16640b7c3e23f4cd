"""The only place that talks to MLflow: one experiment per task, one run per training, versions and aliases per model.

    with training_run("support_tickets", None, {"rank": 16}, {"dataset": "9f1c…"}) as run:
        run.log_metrics({"loss": 0.31}, step=12)
        run.log_artifacts(folder, "adapter")
    version = register("support_tickets", run.run_id, "adapter", {"adapter": "4be0…"}, "why it was promoted")
    set_alias("support_tickets", "champion", version)

MLflow is $MLFLOW_TRACKING_URI, or SQLite in the home folder; its telemetry is off. Importing it takes seconds, so that
every function here imports it itself. A run is ended as FINISHED, FAILED, or KILLED (cancelled; it goes on later).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import JobCancelled, StorageError
from finetune_pipeline.records import Silent
from finetune_pipeline.store import machine_lock, mlflow_artifacts, mlflow_uri


@dataclass(frozen=True)
class Run:
    """A run that is open. Metrics are numbers by name; `step` counts optimiser steps."""

    run_id: str

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        _mlflow().log_metrics(dict(metrics), step=step, run_id=self.run_id)

    def log_artifacts(self, folder: Path, path: str) -> None:
        """Copy the files of `folder` under `path` of the run."""
        _mlflow().log_artifacts(str(folder), path, run_id=self.run_id)

    def log_dataset(self, name: str, digest: str, rows: int) -> None:
        """Record what the run was trained on: shown as its dataset, with the content hash as digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest[:36], "local", name, profile=f'{{"num_rows": {rows}}}')
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        _mlflow().MlflowClient().log_inputs(self.run_id, datasets=inputs)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        client = _mlflow().MlflowClient()
        for name, value in tags.items():
            client.set_tag(self.run_id, name, value)


@contextmanager
def training_run(
    task: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Open a run in the task's experiment, or go on with `run_id`; system metrics are recorded while it is open.

    `params` are written once, for a new run. A `run_id` that MLflow no longer knows gives a new run: what is trained
    must not depend on who tidied up in MLflow.
    """
    mlflow = _mlflow()
    known = run_id if run_id and _exists(run_id) else None
    with mlflow.start_run(
        run_id=known, experiment_id=_experiment(task), tags=dict(tags or {}), log_system_metrics=True
    ) as active:
        if known is None:
            mlflow.log_params(dict(params))
        try:
            yield Run(active.info.run_id)
        except JobCancelled:
            mlflow.end_run("KILLED")
            raise


def register(name: str, run_id: str, artifact_path: str, tags: Mapping[str, str], description: str) -> int:
    """Make what the run logged under `artifact_path` the next version of the model `name`; gives its number."""
    mlflow = _mlflow()
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
    made = client.create_model_version(name, source, run_id, tags=dict(tags), description=description)
    return int(made.version)


def find_version(name: str, tag: str, value: str) -> int | None:
    """The newest version of the model `name` that was registered with this tag, or None (no such version or model)."""
    found = _mlflow().MlflowClient().search_model_versions(f"name = '{name}'")
    return max((int(version.version) for version in found if version.tags.get(tag) == value), default=None)


def set_alias(name: str, alias: str, version: int) -> None:
    _mlflow().MlflowClient().set_registered_model_alias(name, alias, str(version))


def delete_alias(name: str, alias: str) -> None:
    """Take an alias away; nothing happens when there is none."""
    if alias_version(name, alias) is not None:
        _mlflow().MlflowClient().delete_registered_model_alias(name, alias)


def alias_version(name: str, alias: str) -> int | None:
    """The version an alias points to, or None (no such alias, no such model)."""
    found = _mlflow().MlflowClient().search_registered_models(f"name = '{name}'")
    version = found[0].aliases.get(alias) if found else None
    return int(version) if version is not None else None


def version_tags(name: str, version: int) -> dict[str, str]:
    """The tags a version was registered with. StorageError when there is no such version."""
    from mlflow.exceptions import MlflowException

    try:
        return dict(_mlflow().MlflowClient().get_model_version(name, str(version)).tags)
    except MlflowException as error:
        raise StorageError(
            f"MLflow at {mlflow_uri()} knows no version {version} of {name}",
            "see `finetune status` for those there are",
        ) from error


def _mlflow() -> Any:
    """MLflow, quiet and pointed at the right place."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if mlflow.get_tracking_uri() != mlflow_uri():
        with machine_lock("mlflow", Silent(), "MLflow's database is being made"):  # two at once would both create it
            mlflow.set_tracking_uri(mlflow_uri())
            mlflow.set_registry_uri(mlflow_uri())
            mlflow.search_experiments(max_results=1)
    return mlflow


def _experiment(task: str) -> str:
    """The id of the task's experiment; its artifacts lie in the home folder unless a server has a place of its own."""
    mlflow = _mlflow()
    with machine_lock("mlflow", Silent(), "MLflow's database is in use"):
        found = mlflow.get_experiment_by_name(task)
        if found is not None:
            return str(found.experiment_id)
        own = mlflow_uri().startswith("sqlite:")
        return str(mlflow.create_experiment(task, (mlflow_artifacts() / task).as_uri() if own else None))


def _exists(run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        run = _mlflow().MlflowClient().get_run(run_id)
    except MlflowException:
        return False
    return bool(run.info.lifecycle_stage == "active")
