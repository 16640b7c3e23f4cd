"""The only place that talks to MLflow: one experiment per task, one run per training, versions and aliases per model.

    with training_run("support_tickets", None, {"rank": 16}, {"dataset": "9f1c…"}) as run:
        run.log_metrics({"loss": 0.31}, step=12)
        run.log_artifacts(folder, "adapter")
    version = register("support_tickets", run.run_id, "adapter", {"adapter": "4be0…"}, "why it was promoted")
    set_alias("support_tickets", "champion", version)

MLflow is $MLFLOW_TRACKING_URI, or SQLite in the home folder; its telemetry is off. Importing it takes seconds, so that
every function here imports it itself. A run is ended as FINISHED, FAILED, or KILLED (cancelled; it goes on later).

An MLflow that goes away, or hangs, while a run is open costs the run nothing but what MLflow would show: metrics are
sent by a thread of their own (tracking/outbox.py), and kept while MLflow does not take them.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.config.credentials import hide_credentials, lacks_encoding, without_credentials
from finetune_pipeline.errors import JobCancelled, StorageError
from finetune_pipeline.records import Silent
from finetune_pipeline.store import machine_lock, mlflow_artifacts, mlflow_uri
from finetune_pipeline.tracking.outbox import Outbox

log = logging.getLogger("finetune.tracking")
# An MLflow that hangs is given up after 20 s twice, where its own defaults are 120 s eight times.
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}


CURE = "see that it runs, and that MLFLOW_TRACKING_URI with user and password is right; then run again"
ENCODE = (
    "see that MLFLOW_TRACKING_URI is right, and percent-encode special characters in its user and password "
    "(`#` is %23, `/` is %2F, `?` is %3F, `@` is %40, a space is %20); then run again"
)
DRIVER = (
    "install what is missing; for PostgreSQL: `.venv/bin/uv pip install -p .venv -c requirements.lock -e '.[postgres]'`"
    " in the project's folder, and MLFLOW_TRACKING_URI=postgresql+psycopg2://… (with the driver's name); then run again"
)


@contextmanager
def _asking(what: str, hint: str = CURE) -> Iterator[None]:
    """Asks MLflow within the block (or the decorated function). What it does not do is a StorageError without the
    password of its address, which MLflow's own errors name: hence it is not kept as the cause either."""
    try:
        yield
    except outages() as error:
        raise StorageError(f"MLflow at {_shown()} does not {what}: {said(error)}", _hint(error, hint)) from None


def _hint(error: Exception, otherwise: str) -> str:
    if isinstance(error, ImportError):
        return DRIVER
    return ENCODE if isinstance(error, ValueError) or lacks_encoding(mlflow_uri()) else otherwise


def _batch(run_id: str, metrics: Mapping[str, float], step: int, at: int) -> None:
    from mlflow.entities import Metric

    _mlflow().MlflowClient().log_batch(run_id, [Metric(name, value, at, step) for name, value in metrics.items()])


def _tolerated(what: str, send: Callable[[], object]) -> bool:
    """Whether MLflow took it. An outage is a warning: training has to go on."""
    try:
        send()
    except outages() as error:
        log.warning("MLflow does not take %s, and the run goes on: %s", what, said(error))
        return False
    return True


@dataclass(frozen=True)
class Run:
    """A run that is open. Metrics are numbers by name; `step` counts optimizer steps. No method waits long for MLflow,
    or raises because of it."""

    run_id: str
    outbox: Outbox

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.outbox.put(metrics, step)

    def log_artifacts(self, folder: Path, path: str) -> None:
        """Copy the files of `folder` under `path` of the run. `register` does it again where that failed."""
        _tolerated(path, lambda: _mlflow().log_artifacts(str(folder), path, run_id=self.run_id))

    def log_dataset(self, name: str, digest: str, rows: int) -> None:
        """Record what the run was trained on: shown as its dataset, with the content hash as digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name, digest[:36], "local", name, profile=f'{{"num_rows": {rows}}}')
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        _tolerated("the dataset", lambda: _mlflow().MlflowClient().log_inputs(self.run_id, datasets=inputs))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            _tolerated("a tag", lambda name=name, value=value: _set_tag(self.run_id, name, value))  # type: ignore[misc]


def _set_tag(run_id: str, name: str, value: str) -> None:
    _mlflow().MlflowClient().set_tag(run_id, name, value)


@contextmanager
def training_run(
    task: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> Iterator[Run]:
    """Open a run in the task's experiment, or go on with `run_id`; system metrics are recorded while it is open.

    `params` are written once, for a new run. A `run_id` that MLflow no longer knows gives a new run: what is trained
    must not depend on who tidied up in MLflow. StorageError when MLflow does not answer at the beginning: better before
    the hours of training than after them.
    """
    local = "start it, or unset MLFLOW_TRACKING_URI to keep the runs on this machine; then run again"
    with _asking("open a run", local):
        mlflow = _mlflow()
        known = run_id if run_id and _exists(run_id) else None
        active = mlflow.start_run(
            run_id=known, experiment_id=_experiment(task), tags=dict(tags or {}), log_system_metrics=True
        )
        if known is None:
            mlflow.log_params(dict(params))
    open_id, status = active.info.run_id, "FINISHED"
    outbox = Outbox(lambda *item: _tolerated("metrics", lambda: _batch(open_id, *item)))
    try:
        yield Run(open_id, outbox)
    except BaseException as error:
        status = "KILLED" if isinstance(error, JobCancelled) else "FAILED"
        raise
    finally:
        if left := outbox.close():
            log.warning("%s lines of metrics are not in MLflow: it does not take them", left)
        _tolerated("the run's end", lambda: mlflow.end_run(status))


@_asking("register a model")
def register(
    name: str, run_id: str, artifact_path: str, tags: Mapping[str, str], description: str, folder: Path | None = None
) -> int:
    """Make what the run logged under `artifact_path` the next version of the model `name`; gives its number. Where the
    run could not log it (MLflow was away at its end), the files in `folder` are logged now."""
    mlflow = _mlflow()
    client = mlflow.MlflowClient()
    if folder is not None and not client.list_artifacts(run_id, artifact_path):
        client.log_artifacts(run_id, str(folder), artifact_path)
        client.set_terminated(run_id, "FINISHED")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
    made = client.create_model_version(name, source, run_id, tags=dict(tags), description=description)
    return int(made.version)


@_asking("say which versions there are")
def find_version(name: str, tag: str, value: str) -> int | None:
    """The newest version of the model `name` that was registered with this tag, or None (no such version or model)."""
    found = _mlflow().MlflowClient().search_model_versions(f"name = '{name}'")
    return max((int(version.version) for version in found if version.tags.get(tag) == value), default=None)


@_asking("set an alias")
def set_alias(name: str, alias: str, version: int) -> None:
    _mlflow().MlflowClient().set_registered_model_alias(name, alias, str(version))


@_asking("delete an alias")
def delete_alias(name: str, alias: str) -> None:
    """Take an alias away; nothing happens when there is none."""
    if alias_version(name, alias) is not None:
        _mlflow().MlflowClient().delete_registered_model_alias(name, alias)


@_asking("say where an alias points to")
def alias_version(name: str, alias: str) -> int | None:
    """The version an alias points to, or None (no such alias, no such model)."""
    found = _mlflow().MlflowClient().search_registered_models(f"name = '{name}'")
    version = found[0].aliases.get(alias) if found else None
    return int(version) if version is not None else None


@_asking("give the tags of a version")
def version_tags(name: str, version: int) -> dict[str, str]:
    """The tags a version was registered with. StorageError when there is no such version."""
    found = _unless_missing(lambda: _mlflow().MlflowClient().get_model_version(name, str(version)))
    if found is None:
        hint = "see `finetune status` for those there are"
        raise StorageError(f"MLflow at {_shown()} knows no version {version} of {name}", hint)
    return dict(found.tags)


def outages() -> tuple[type[Exception], ...]:
    """What MLflow raises when it does not do what it is asked for: its server, or the database it writes to itself. An
    ImportError is a database's driver that is not installed, a ValueError an address that is none."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, OSError, ImportError, ValueError


def said(error: Exception) -> str:
    """The first line of an error, for people. MLflow names the address that it asked, with user and password: these
    are left out, and those of any other address."""
    text = hide_credentials(str(error), mlflow_uri())
    line = next(iter(text.splitlines()), "") or type(error).__name__
    return re.sub(r"://[^/?#\s]*@", "://", line)


def _shown() -> str:
    return without_credentials(mlflow_uri())


def _mlflow() -> Any:
    """MLflow, quiet and pointed at the right place."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").addFilter(_hide_in_log)  # warns at each attempt to reach a database
    if mlflow.get_tracking_uri() != mlflow_uri():
        with machine_lock("mlflow", Silent(), "MLflow's database is being made"):  # two at once would both create it
            mlflow.set_tracking_uri(mlflow_uri())
            mlflow.set_registry_uri(mlflow_uri())
            mlflow.search_experiments(max_results=1)
    return mlflow


def _hide_in_log(record: logging.LogRecord) -> bool:
    """A filter that lets every record through, without user and password of MLflow's address."""
    record.msg, record.args = hide_credentials(record.getMessage(), mlflow_uri()), ()
    return True


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
    run = _unless_missing(lambda: _mlflow().MlflowClient().get_run(run_id))
    return run is not None and bool(run.info.lifecycle_stage == "active")


def _unless_missing(ask: Callable[[], Any]) -> Any:
    """What MLflow gives, None where it knows no such thing. An outage is no such answer, and is raised."""
    from mlflow.exceptions import MlflowException

    try:
        return ask()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # the latter: no id of a run
            return None
        raise
