"""`kind: ray`: the same processes as a job of an existing Ray cluster, through its job submission API (extra `ray`).

One machine: the job's command is `backends/node.py`, with a GPU per process as its resources. Several: the command is
`backends/ray_nodes.py`, which reserves a place on as many machines and runs `backends/node.py` on each. Ray gives the
devices; events, result and cancellation are files of the job's folder, which is on a volume that all machines share.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_files import JobFiles, untouched
from finetune_pipeline.backends.node import Launch
from finetune_pipeline.backends.remote import ADDRESS, RETRY_LOG, forwarded, wait_for_end
from finetune_pipeline.config import Backend
from finetune_pipeline.config.credentials import hide_credentials, without_credentials
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.records import Reporter

POLL_SECONDS = 1.0
SHARED = Path("/")  # the machines of a Ray cluster have data and home folder under the same path, wherever that is
AWAY_SECONDS = 600.0  # of an address that does not answer, before the job counts as lost
ENDING_SECONDS = 30.0  # of machines that give no sign after a cancellation
HINT = "check `ray.address` of the backend, and that the cluster runs; then run again: finished work is kept"


def start(files: JobFiles, launch: Launch, backend: Backend, report: Reporter) -> RayJob:
    """Submit the job, after stopping one that an earlier run of the same folder left. TrainingFailed when the cluster
    does not take it."""
    own = backend.ray.runtime_env.get("env_vars", {})
    environment = {**forwarded(SHARED, own_address=ADDRESS in own), "RAY_USAGE_STATS_ENABLED": "0", **own}
    job = RayJob(files, launch, backend, report, _client(backend.ray.address), environment)
    job.stop_earlier()
    job.submit()
    return job


def _client(address: str) -> Any:
    try:
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        hint = "in the clone: .venv/bin/uv pip install -p .venv -c requirements.lock -e '.[ray]'"
        raise TrainingFailed("the backend `ray` needs the extra `ray`", hint) from error
    with _asking("answer", address):
        return JobSubmissionClient(address)


@contextmanager
def _asking(action: str, address: str) -> Iterator[None]:
    """A block with a request to the cluster, whose failure is TrainingFailed, without credentials of the address."""
    try:
        yield
    except _client_errors() as error:
        server, reason = without_credentials(address), hide_credentials(str(error), address)
        raise TrainingFailed(f"the Ray cluster at {server} did not {action}: {reason}", HINT) from None


def _client_errors() -> tuple[type[Exception], ...]:
    """What Ray's client raises: RuntimeError for an answer of the cluster, ValueError and TypeError for a wrong
    `runtime_env`, errors of requests, which are OSErrors, and RayError for a login."""
    from ray.exceptions import RayError

    return RayError, RuntimeError, ValueError, TypeError, OSError


@dataclass
class RayJob:
    """A job of a Ray cluster (follow.Started)."""

    files: JobFiles
    launch: Launch
    backend: Backend
    report: Reporter
    client: Any
    environment: Mapping[str, str]
    _id: str = ""
    _submitted: int = 0
    _code: int | None = None
    _asked: float = 0.0
    _answered: float = field(default_factory=time.monotonic)

    def _asking(self, action: str) -> AbstractContextManager[None]:
        return _asking(action, self.backend.ray.address)

    def submit(self) -> None:
        self._id = f"finetune-{self.launch.id}-{self._submitted}"
        self._submitted += 1
        gpus = self.launch.processes_per_node if self.backend.device != "cpu" else 0
        alone = {"entrypoint_num_cpus": self.launch.processes_per_node, "entrypoint_num_gpus": gpus}
        with self._asking("take the job"):
            self.client.submit_job(
                entrypoint=shlex.join(self._command(gpus)),
                submission_id=self._id,
                runtime_env={**self.backend.ray.runtime_env, "env_vars": dict(self.environment)},
                metadata={"folder": str(self.files.folder.parent)},
                **(alone if self.launch.nodes == 1 else {}),
            )
        self.report.log(f"submitted the Ray job {self._id} to {without_credentials(self.backend.ray.address)}")

    def _command(self, gpus: int) -> list[str]:
        python, path = self.backend.ray.python, str(self.files.launch)
        if self.launch.nodes == 1:
            return [python, "-m", "finetune_pipeline.backends.node", path]
        return [python, "-m", "finetune_pipeline.backends.ray_nodes", path, str(gpus)]

    def stop_earlier(self) -> None:
        """A job whose parent was killed would write into the same checkpoints: stop it, and wait for its end."""
        folder = str(self.files.folder.parent)
        with self._asking("list its jobs"):
            jobs = self.client.list_jobs()
        for job in jobs:
            if (job.metadata or {}).get("folder") == folder and not job.status.is_terminal():
                self.report.log(f"stopping the Ray job {job.submission_id} of an earlier run")
                self._stop(job.submission_id)
                while not self._status_of(job.submission_id).is_terminal():
                    self.report.alive()
                    time.sleep(POLL_SECONDS)

    def _stop(self, identifier: str) -> None:
        with self._asking("stop a job"):
            self.client.stop_job(identifier)

    def _status_of(self, identifier: str) -> Any:
        with self._asking("tell the status of a job"):
            return self.client.get_job_status(identifier)

    def ended(self) -> int | None:
        """Asks at most every POLL_SECONDS. A job whose machine was lost is submitted again."""
        if self._code is not None or time.monotonic() - self._asked < POLL_SECONDS:
            return self._code
        self._asked = time.monotonic()
        status = self._status()
        if status is None or not status.is_terminal():
            return None
        lost = status == "FAILED" and not (self.files.failed.exists() or self.files.stops() or self.files.errors())
        if lost and self._submitted <= self.launch.max_restarts:
            self.report.log(RETRY_LOG.format(number=self._submitted))
            self.submit()
            return None
        self._code = 0 if status == "SUCCEEDED" else 1
        if self._code:
            self._keep_message()
        return self._code

    def _status(self) -> Any:
        """None where the cluster does not answer now. TrainingFailed when it has not for AWAY_SECONDS."""
        try:
            status = self._status_of(self._id)
        except TrainingFailed:
            if time.monotonic() - self._answered > AWAY_SECONDS:
                raise
            return None
        self._answered = time.monotonic()
        return status

    def _keep_message(self) -> None:
        """What Ray says about a job that failed, beside what its processes printed."""
        try:
            with self._asking("tell why the job failed"):
                message = self.client.get_job_info(self._id).message or ""
        except TrainingFailed as error:  # the error of the job counts
            self.report.log(error.message)
            return
        output = os.open(self.files.folder / "output-ray.log", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(output, "w", encoding="utf-8") as file:
            file.write(message)

    def end(self) -> None:
        """Cancel the job; its machines end it at a checkpoint, and kill what is inactive. Then stop what is left. An
        error of that is logged: the reason of the cancellation counts."""
        if self._code is not None:
            return
        self.files.cancel.touch()
        try:
            wait_for_end(self._has_ended, untouched(self.files.ending, ENDING_SECONDS))
        finally:
            try:
                if not self._status_of(self._id).is_terminal():
                    self._stop(self._id)
            except TrainingFailed as error:
                self.report.log(f"{error.message}; to stop it: ray job stop {self._id}")

    def _has_ended(self) -> bool:
        """False where the cluster does not answer: then the files of the machines tell it."""
        try:
            return self.ended() is not None
        except TrainingFailed:
            return False
