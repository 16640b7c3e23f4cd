"""`kind: ray`: the same processes as a job of an existing Ray cluster, through its job submission API (extra `ray`).

One machine: the job's command is `backends/node.py`, with a GPU per process as its resources. Several: the command is
`backends/ray_nodes.py`, which reserves a place on as many machines and runs `backends/node.py` on each. Ray gives the
devices; events, result and cancellation are files of the job's folder, which is on a volume that all machines share.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping
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
        raise TrainingFailed("the backend `ray` needs the extra `ray`", "install finetune-pipeline[ray]") from error
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        reason = hide_credentials(str(error), address)
        raise TrainingFailed(f"no Ray cluster answers at {without_credentials(address)}: {reason}", HINT) from None


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

    @property
    def server(self) -> str:
        """The address of the cluster, to be shown."""
        return without_credentials(self.backend.ray.address)

    def submit(self) -> None:
        self._id = f"finetune-{self.launch.id}-{self._submitted}"
        self._submitted += 1
        gpus = self.launch.processes_per_node if self.backend.device != "cpu" else 0
        alone = {"entrypoint_num_cpus": self.launch.processes_per_node, "entrypoint_num_gpus": gpus}
        self.client.submit_job(
            entrypoint=shlex.join(self._command(gpus)),
            submission_id=self._id,
            runtime_env={**self.backend.ray.runtime_env, "env_vars": dict(self.environment)},
            metadata={"folder": str(self.files.folder.parent)},
            **(alone if self.launch.nodes == 1 else {}),
        )
        self.report.log(f"submitted the Ray job {self._id} to {self.server}")

    def _command(self, gpus: int) -> list[str]:
        python, path = self.backend.ray.python, str(self.files.launch)
        if self.launch.nodes == 1:
            return [python, "-m", "finetune_pipeline.backends.node", path]
        return [python, "-m", "finetune_pipeline.backends.ray_nodes", path, str(gpus)]

    def stop_earlier(self) -> None:
        """A job whose parent was killed would write into the same checkpoints: stop it, and wait for its end."""
        folder = str(self.files.folder.parent)
        for job in self.client.list_jobs():
            if (job.metadata or {}).get("folder") == folder and not job.status.is_terminal():
                self.report.log(f"stopping the Ray job {job.submission_id} of an earlier run")
                self.client.stop_job(job.submission_id)
                while not self.client.get_job_status(job.submission_id).is_terminal():
                    self.report.alive()
                    time.sleep(POLL_SECONDS)

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
            status = self.client.get_job_status(self._id)
        except (OSError, RuntimeError) as error:  # requests' errors are OSErrors
            if time.monotonic() - self._answered > AWAY_SECONDS:
                raise TrainingFailed(f"the Ray cluster at {self.server} is away: {error}", HINT) from error
            return None
        self._answered = time.monotonic()
        return status

    def _keep_message(self) -> None:
        """What Ray says about a job that failed, beside what its processes printed."""
        message = self.client.get_job_info(self._id).message or ""
        output = os.open(self.files.folder / "output-ray.log", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(output, "w", encoding="utf-8") as file:
            file.write(message)

    def end(self) -> None:
        """Cancel the job; its machines end it at a checkpoint, and kill what is inactive. Then stop what is left."""
        if self._code is not None:
            return
        self.files.cancel.touch()
        try:
            wait_for_end(lambda: self.ended() is not None, untouched(self.files.ending, 30.0))
        finally:
            status = self._status()
            if status is not None and not status.is_terminal():
                self.client.stop_job(self._id)
