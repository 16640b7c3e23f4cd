"""The only place that talks to MLflow: training runs, the registry and its aliases.

MLflow's database is `store.mlflow_uri()` (SQLite by default); its files lie in `store.mlflow_artifacts()`. A model here
is an adapter's folder, registered without a flavor: MLflow's PEFT flavor would copy the whole base model beside it.

    with training_run("support_tickets", None, {"rank": 16}, {"data": "9f1c"}) as run:
        run.log_metrics({"loss": 0.7}, step=1)
        run.log_artifacts(folder, "adapter")
    version = register("support_tickets", run.run_id, "adapter", {"adapter": content}, "LoRA of ...")

What it is not: the decision what to register or to serve (release/, serve/).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import JobCancelled
from finetune_pipeline.store import mlflow_artifacts, mlflow_uri

VALUE_LIMIT = 500  # characters of a parameter or tag that MLflow keeps on every backend


@dataclass(frozen=True)
class Run:
    """A training run that is open in MLflow; metrics are sent in batches without holding up the training."""

    run_id: str
    client: Any

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=points, synchronous=False)

    def log_artifacts(self, folder: Path, path: str) -> None:
        self.client.log_artifacts(self.run_id, str(folder), path)

    def log_dataset(self, name: str, digest: str, rows: int) -> None:
        """Bind the run to the data it learned from: `digest` is the artifact's content hash."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest, source_type="artifact", source=name, profile=f'{{"rows": {rows}}}')
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.client.set_tag(self.run_id, name, str(value)[:VALUE_LIMIT])


@contextmanager
def training_run(task: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Run]:
    """Open a run in the experiment `task`, or go on with `run_id`; system metrics are sampled meanwhile.

    It ends as FINISHED, or as KILLED on an interrupt and FAILED on an error, so that nobody waits for it in the UI.
    """
    mlflow = _mlflow()
    mlflow.set_experiment(experiment_id=_experiment(task))
    mlflow.set_system_metrics_sampling_interval(5)
    client = mlflow.MlflowClient()
    if run_id is not None and not _exists(client, run_id):
        run_id = None  # the checkpoint came from another machine's MLflow: a run of its own is the honest record
    with mlflow.start_run(run_id=run_id, run_name=None if run_id else task, log_system_metrics=True) as active:
        run = Run(active.info.run_id, client)
        if run_id is None:
            flat = {name: str(value)[:VALUE_LIMIT] for name, value in params.items()}
            mlflow.log_params(flat)
        run.set_tags(tags)
        try:
            yield run
        except JobCancelled:
            mlflow.end_run("KILLED")
            raise
        finally:
            mlflow.flush_async_logging()


def register(name: str, run_id: str, artifact_path: str, tags: Mapping[str, str], description: str) -> int:
    """Make the run's artifact folder the next version of the registered model `name`; gives the version."""
    from mlflow.exceptions import MlflowException

    client = _mlflow().MlflowClient()
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"runs:/{run_id}/{artifact_path}"
    plain = {key: str(value)[:VALUE_LIMIT] for key, value in tags.items()}
    version = client.create_model_version(name, source, run_id=run_id, tags=plain, description=description)
    return int(version.version)


def find_version(name: str, tag: str, value: str) -> int | None:
    """The newest version of `name` whose tag has this value: what is registered once is not registered again."""
    client = _mlflow().MlflowClient()
    found = client.search_model_versions(f"name='{name}'")
    versions = [int(v.version) for v in found if v.tags.get(tag) == value]
    return max(versions, default=None)


def set_alias(name: str, alias: str, version: int) -> None:
    _mlflow().MlflowClient().set_registered_model_alias(name, alias, str(version))


def delete_alias(name: str, alias: str) -> None:
    _mlflow().MlflowClient().delete_registered_model_alias(name, alias)


def alias_version(name: str, alias: str) -> int | None:
    """The version that `alias` names, or None when there is no such model or alias."""
    from mlflow.exceptions import MlflowException

    try:
        return int(_mlflow().MlflowClient().get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def version_tags(name: str, version: int) -> dict[str, str]:
    return dict(_mlflow().MlflowClient().get_model_version(name, str(version)).tags)


def _mlflow() -> Any:
    """MLflow, pointed at our database, with its telemetry off before it is imported."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import mlflow

    uri = mlflow_uri()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    return mlflow


def _experiment(task: str) -> str:
    client = _mlflow().MlflowClient()
    found = client.get_experiment_by_name(task)
    if found is not None:
        return str(found.experiment_id)
    remote = mlflow_uri().startswith("http")  # a server decides itself where artifacts go
    return str(client.create_experiment(task, None if remote else (mlflow_artifacts() / task).as_uri()))


def _exists(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True
