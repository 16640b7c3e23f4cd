"""One MLflow run per training: parameters, metrics, dataset, files; a resumed training continues its run.

    with training_run("support_tickets", state.run_id, {"lora.r": 16}) as run:
        run.log_metrics({"loss": 0.31}, step=12)
    state.run_id = run.run_id

A run ends as FINISHED, FAILED, or KILLED (canceled, to be resumed). Everything is written to a journal on this machine
first (journal.py), and delivered from there. So a training begins, goes on and ends while MLflow is away; what is left
then is delivered later: by the next training, by `finetune up`, by the sensor `mlflow_delivery`, by `finetune sync`, or
by the registration of the model. Only an address or a login that MLflow refuses is an error at the beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import JobCanceled, StorageError
from finetune_pipeline.records import SILENT, Reporter
from finetune_pipeline.tracking import background
from finetune_pipeline.tracking import journal as journals
from finetune_pipeline.tracking.client import error_line, is_refusal, load, mlflow_call, mlflow_errors, server
from finetune_pipeline.tracking.delivery import deliver, sync
from finetune_pipeline.tracking.journal import Journal
from finetune_pipeline.tracking.sender import MachineMetrics, Sender, now_ms

LOCAL_HINT = "correct it, or unset MLFLOW_TRACKING_URI to keep the runs on this machine; then run again"


@dataclass(frozen=True)
class Run:
    """An open run. `step` counts optimizer steps. No method waits for MLflow or raises when it is away; StorageError
    when the disk of this machine is full."""

    journal: Journal
    sender: Sender

    @property
    def run_id(self) -> str:
        """MLflow's id of the run, or its local one while MLflow does not know it (`delivery.delivered_run`)."""
        return self.journal.place.run_id or self.journal.about.continues or self.journal.about.id

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; None while it is not known."""
        return self.journal.place.experiment_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self.journal.append("metrics", values=values, step=step, timestamp=now_ms())
        self.sender.wake()

    def log_artifacts(self, folder: Path, path: str) -> None:
        """Put the files of `folder` to `path` in the run, at its end."""
        self.journal.add_files(folder, path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, such as the state of a trial."""
        self.journal.append("tags", values=dict(tags))
        self.sender.wake()

    def log_dataset(self, name: str, digest: str, rows: int) -> None:
        """Record the training data as the run's dataset, with its content hash as digest."""
        self.journal.append("dataset", name=name, digest=digest, rows=rows)
        self.sender.wake()


@contextmanager
def training_run(
    task: str,
    run_id: str | None,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    report: Reporter = SILENT,
    parent: str | None = None,
) -> Iterator[Run]:
    """Open a run in the task's experiment, or continue `run_id`; metrics of the machine are recorded while it is open.
    `parent`: `Run.run_id` of an open run that this one is shown below, and which records the metrics of the machine.

    `params` are logged once, for a new run. A `run_id` that was deleted in MLflow is replaced by a new run. That MLflow
    is away is reported. StorageError when it refuses the address or the login: better than after hours of training.
    """
    with _owned(task, run_id, params, tags or {}, parent) as journal:
        _begin(journal, report)
        sender = Sender(lambda: deliver(journal, with_files=False))
        run = Run(journal, sender)
        sender.wake()
        machine = MachineMetrics(run.log_metrics) if parent is None else None
        status = "FINISHED"
        try:
            yield run
        except BaseException as error:
            status = "KILLED" if isinstance(error, JobCanceled) else "FAILED"
            raise
        finally:
            if machine is not None:
                machine.close()
            journal.append("status", status=status, timestamp=now_ms())
            if _end(journal, sender.close(), report) and status == "FINISHED" and parent is None:
                _deliver_others(report)


@contextmanager
def _owned(
    task: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str], parent: str | None
) -> Iterator[Journal]:
    """The journal of the run, for this process alone. Another process may deliver and remove it before."""
    while True:
        journal = _journal(task, run_id, params, tags, parent)
        with journals.own(journal, wait=True) as owned:
            if owned:
                yield journal
                return


def _journal(
    task: str, run_id: str | None, params: Mapping[str, Any], tags: Mapping[str, str], parent: str | None
) -> Journal:
    """The journal that has records of the run, or a new one."""
    found = journals.find(run_id)
    if found is not None:
        return found
    load()
    from mlflow.tracking.context.registry import resolve_tags  # who runs what: user, source, commit

    return journals.create(task, run_id, params, resolve_tags(dict(tags)), now_ms(), parent)


def _begin(journal: Journal, report: Reporter) -> None:
    """Open the run in MLflow if it answers."""
    continued = bool(list(journal.records())) or bool(journal.place.bytes)
    journal.reopen()
    if continued and journal.is_over:
        journal.append("status", status="RUNNING")
    try:
        deliver(journal, with_files=False)
    except mlflow_errors() as error:
        if is_refusal(error):
            if not continued:
                journal.remove()
            with mlflow_call("open a run", LOCAL_HINT):
                raise
        report.log(
            f"MLflow at {server()} is away, and the training goes on without it ({error_line(error)}); its run is kept "
            f"in {journal.folder} and delivered later"
        )


def _end(journal: Journal, idle: bool, report: Reporter) -> bool:
    """Deliver the rest, files included; whether MLflow has all of it now. Without `idle`, a request hangs."""
    failures: tuple[type[Exception], ...] = (*mlflow_errors(), StorageError)
    try:
        if idle:
            deliver(journal)
    except failures:
        idle = False
    if not idle:
        report.log(
            f"MLflow at {server()} did not take over the whole run; the rest is in {journal.folder}: `finetune sync` "
            "delivers it when MLflow answers again"
        )
    return idle


def _deliver_others(report: Reporter) -> None:
    """What earlier trainings left, while MLflow answers: their records here; their files, such as weights of many GB,
    in a process of its own, because this one may hold a GPU."""
    try:
        sync(lambda text: None, with_files=False)
        background.start()
    except (StorageError, OSError) as error:
        reason = error.message if isinstance(error, StorageError) else str(error)
        report.log(f"a run of an earlier training is not in MLflow yet: {reason}")
