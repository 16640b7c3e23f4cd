"""Deliver journals (journal.py) to MLflow: in order, with the times at which things happened, each record once.

    deliver(journal)             # raises what MLflow raises; the rest is delivered by the next call
    sync(print)                  # all journals of this machine: what `finetune sync` does
    delivered_run("support_tickets", "local-1f0c…")      # "9be0…": the run's id in MLflow

A record counts as delivered once MLflow has answered. When the answer is lost, the record is sent again, which MLflow
tolerates: a run is looked up by its tag before it is created; metrics are keyed by name, step, value and time;
parameters, datasets and files replace themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import SILENT
from finetune_pipeline.store import machine_lock, mlflow_artifacts, mlflow_uri
from finetune_pipeline.tracking.client import answers, connect, mlflow_call, none_if_missing, server
from finetune_pipeline.tracking.journal import LOCAL, About, Journal, Place, at_server, find, is_end, journals, own

TAG = "finetune.run"  # of a run in MLflow: the id of the journal that began it
PARENT = "mlflow.parentRunId"  # of a run in MLflow: the run that it is shown below
METRICS_PER_REQUEST = 500


def deliver(journal: Journal, with_files: bool = True) -> None:
    """Send what MLflow has not accepted, and remove the journal when the run has ended. Without `with_files`, up to the
    first files, whose upload takes long. Call it within `own`. Raises what MLflow raises (`client.mlflow_errors`)."""
    client = connect().MlflowClient()
    place = at_server(journal.place, server())
    if place.run_id is None:
        place = _open(client, journal, place)
        journal.advance(place)
    for records, end in _batches(journal):
        if records[0]["kind"] == "files" and not with_files:
            return
        _send(client, str(place.run_id), journal, records)
        place = replace(place, bytes=end, ended=is_end(records[-1]))
        journal.advance(place)
    if place.ended:
        journal.remove()


def deliver_ended(journal: Journal, with_files: bool = True) -> None:
    """`deliver` a journal whose process has ended; a run whose process was killed ends as KILLED."""
    journal.reopen()
    if not journal.is_over:
        journal.append("status", status="KILLED", timestamp=journal.last_written_ms)
    deliver(journal, with_files)


def sync(show: Callable[[str], None], with_files: bool = True) -> None:
    """Deliver all journals of this machine whose training does not run, and show each that is delivered whole.
    `with_files`: as for `deliver`. StorageError when MLflow is away, at once, or did not accept a record, after the
    other journals."""
    problems: list[StorageError] = []
    for journal in journals(problems.append):
        with own(journal) as owned:
            if not owned:
                continue  # its training runs, and delivers by itself
            try:
                with mlflow_call(f"take over the records in {journal.folder}"):
                    deliver_ended(journal, with_files)
                if journal.place.ended:
                    show(f"{journal.about.task}: the run {journal.place.run_id} is in MLflow")
            except StorageError as error:
                problems.append(error)
                if not answers():
                    break
    if problems:
        raise problems[0]


def pending() -> list[Journal]:
    """The journals whose training does not run, without a request to MLflow."""
    waiting = []
    for journal in journals():
        with own(journal) as owned:
            waiting += [journal] if owned else []
    return waiting


def delivered_run(task: str, run_id: str) -> str:
    """The id in MLflow of a run of the experiment `task`, with all of its records delivered. StorageError when MLflow
    is away, or does not know the run."""
    with mlflow_call("take over the records of the training"):
        journal = find(run_id)
        if journal is not None:
            with own(journal, wait=True) as owned:
                if owned:
                    deliver_ended(journal)
            run_id = journal.place.run_id or run_id
        if not run_id.startswith(LOCAL):
            return run_id
        found = _tagged(connect().MlflowClient(), experiment_id(task), run_id)
    if found is None:
        raise StorageError(
            f"MLflow at {server()} does not know the run {run_id} of the training, and its records are not on this "
            "machine",
            "run `finetune sync` on the machine that trained, with its FINETUNE_HOME; then run again",
        )
    return found


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


def _open(client: Any, journal: Journal, place: Place) -> Place:
    """The run in MLflow: the one that is continued, the one that an earlier attempt created, or a new one."""
    from mlflow.entities import Param

    about, experiment = journal.about, experiment_id(journal.about.task)
    if (earlier := about.continues) is not None:
        found = _tagged(client, experiment, earlier) if earlier.startswith(LOCAL) else _active(client, earlier)
        if found is not None:
            client.update_run(found, status="RUNNING")
            return replace(place, run_id=found, experiment_id=experiment)
    key = earlier if earlier and earlier.startswith(LOCAL) else about.id
    run_id = _found_or_created(client, experiment, key, about)
    client.log_batch(run_id, params=[Param(name, str(value)) for name, value in about.params.items()])
    return replace(place, run_id=run_id, experiment_id=experiment)


def _found_or_created(client: Any, experiment: str, key: str, about: About) -> str:
    """The run with the tag `key`. One at a time: a run may also be created for one that is shown below it."""
    parent = _parent(client, experiment, about.parent)
    with machine_lock("mlflow", SILENT, "MLflow's database is in use"):
        found = _tagged(client, experiment, key)
        if found is not None:
            return found
        tags = {**about.tags, TAG: key, **({PARENT: parent} if parent else {})}
        return str(client.create_run(experiment, start_time=about.started_ms, tags=tags).info.run_id)


def _parent(client: Any, experiment: str, run_id: str | None) -> str | None:
    """MLflow's id of the run that another one is shown below; None if it is neither there nor on this machine."""
    if run_id is None or not run_id.startswith(LOCAL):
        return run_id
    journal = find(run_id)
    if journal is None:
        return _tagged(client, experiment, run_id)
    return journal.place.run_id or _found_or_created(client, experiment, run_id, journal.about)


def _tagged(client: Any, experiment: str, key: str) -> str | None:
    found = client.search_runs([experiment], f"tags.`{TAG}` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def _active(client: Any, run_id: str) -> str | None:
    """The id if MLflow has this run; None for one that was deleted."""
    run = none_if_missing(lambda: client.get_run(run_id))
    return run_id if run is not None and run.info.lifecycle_stage == "active" else None


def _batches(journal: Journal) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """The records in order, those of metrics many at a time; each with the bytes up to its end."""
    batch: list[dict[str, Any]] = []
    reached = 0
    for record, end in list(journal.records()):
        full = sum(len(each["values"]) for each in batch) >= METRICS_PER_REQUEST
        if batch and (full or record["kind"] != "metrics"):
            yield batch, reached
            batch = []
        if record["kind"] == "metrics":
            batch.append(record)
        else:
            yield [record], end
        reached = end
    if batch:
        yield batch, reached


def _send(client: Any, run_id: str, journal: Journal, records: list[dict[str, Any]]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag

    record = records[0]
    match record["kind"]:
        case "metrics":
            lines = [(name, value, line) for line in records for name, value in line["values"].items()]
            metrics = [Metric(name, value, line["timestamp"], line["step"]) for name, value, line in lines]
            client.log_batch(run_id, metrics=metrics)
        case "tags":
            client.log_batch(run_id, tags=[RunTag(name, value) for name, value in record["values"].items()])
        case "dataset":
            name, profile = record["name"], f'{{"num_rows": {record["rows"]}}}'
            dataset = Dataset(name, record["digest"][:36], "local", name, profile=profile)
            tags = [InputTag("mlflow.data.context", "training")]
            client.log_inputs(run_id, datasets=[DatasetInput(dataset, tags)])
        case "files":
            client.log_artifacts(run_id, str(journal.folder / "files" / record["folder"]), record["path"])
        case "status" if is_end(record):
            client.set_terminated(run_id, record["status"], record["timestamp"])
        case "status":
            client.update_run(run_id, status=record["status"])
