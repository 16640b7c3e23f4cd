"""A client of the endpoint for the pipeline: of the running endpoint, or of a temporary one that it starts.

    with live_endpoint(task, store, report) as endpoint:
        endpoint.version()["tasks"]["support_tickets"]["champion"]
        httpx.post(endpoint.url + "/v1/chat/completions", headers=endpoint.headers, json=…)

The running endpoint is used when it answers at $FINETUNE_ENDPOINT_URL with this installation's identity (same machine,
home and data): a parity check of another endpoint would prove nothing. Else a process of the same code is started on a
free loopback port and serves this task only; it is ended as a process group afterwards, and writes its log to
<home>/logs/endpoint-temporary.log. For users, `finetune serve` and `make up` start the endpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from finetune_pipeline.backends.local import end_group, job_environment
from finetune_pipeline.backends.progress import activity, until
from finetune_pipeline.config import Task
from finetune_pipeline.config.addresses import address
from finetune_pipeline.errors import ServingError
from finetune_pipeline.records import Reporter
from finetune_pipeline.serve.api_keys import pipeline_key
from finetune_pipeline.serve.deployment_state import Role
from finetune_pipeline.serve.identity import endpoint_identity
from finetune_pipeline.serve.traffic import private
from finetune_pipeline.serve.version_response import VersionResponse
from finetune_pipeline.store import TaskStore, home

STOP_SECONDS = 5.0  # without any activity, after which a temporary endpoint that was sent SIGTERM is killed
RESPONSE_SECONDS = 30.0
MAX_ATTEMPTS = 20  # a busy endpoint may delay a small request; one that misses all of these does not answer
POLL_ROUNDS = 3  # of the supervisor: two after the wait began, it has read the state of that moment


@dataclass(frozen=True, slots=True)
class EndpointClient:
    """The URL of an endpoint, a key for it, and the log file where it is a temporary one."""

    url: str
    key: str
    log: Path | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def get(self, path: str) -> Any:
        """The JSON at `path`. ServingError when the endpoint does not answer, or not with status 200."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                response = httpx.get(self.url + path, headers=self.headers, timeout=RESPONSE_SECONDS)
                break
            except httpx.TransportError as error:
                if isinstance(error, httpx.TimeoutException) and attempt < MAX_ATTEMPTS:
                    continue
                raise ServingError(
                    f"the endpoint {self.url} does not answer: {error!r}{log_tail(self.log)}", _HINT
                ) from error
        if response.status_code != 200:
            raise ServingError(f"GET {self.url}{path}: status {response.status_code}: {response.text[:300]}", _HINT)
        return response.json()

    def version(self) -> VersionResponse:
        """What the endpoint serves. ServingError as in `get`."""
        response: VersionResponse = self.get("/version")
        return response


_HINT = "see the endpoint's log under the home folder's logs/, and run again"


@contextmanager
def live_endpoint(task: Task, store: TaskStore, report: Reporter) -> Iterator[EndpointClient]:
    """See the module's docstring. ServingError with the end of the log when a temporary endpoint does not start."""
    key = pipeline_key(home())
    url = address("FINETUNE_ENDPOINT_URL")
    if is_own_endpoint(url):
        report.log(f"using the endpoint at {url}")
        yield EndpointClient(url, key)
        return
    report.log(f"no endpoint of this home and data answers at {url}: starting a temporary one")
    with temporary_endpoint(task.name, key, report) as endpoint:
        yield endpoint


def is_own_endpoint(url: str) -> bool:
    """Whether an endpoint of this machine, home and data answers at `url`."""
    try:
        response = httpx.get(url + "/health", timeout=3.0)
        return response.status_code == 200 and response.json().get("identity") == endpoint_identity()
    except (httpx.TransportError, ValueError, AttributeError):  # nothing listens, or another kind of server
        return False


@contextmanager
def temporary_endpoint(task: str, key: str, report: Reporter) -> Iterator[EndpointClient]:
    """A process of the endpoint on a free loopback port, ended at the end of the block."""
    log = home() / "logs" / "endpoint-temporary.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        announce = Path(folder) / "url"
        options = ["--port", "0", "--only", task, "--announce", str(announce), "--with-parent", str(os.getpid())]
        with private(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_pipeline.serve.server", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=job_environment(),
                start_new_session=True,
            )
        try:
            yield EndpointClient(_announced_url(process, announce, log, report), key, log)
        finally:
            end_group(process, STOP_SECONDS)


def _announced_url(process: subprocess.Popen[bytes], announce: Path, log: Path, report: Reporter) -> str:
    def announced() -> str:
        if process.poll() is not None:
            raise ServingError(
                f"the endpoint ended at its start, exit code {process.returncode}{log_tail(log)}", f"see {log}"
            )
        url = announce.read_text("utf-8") if announce.exists() else ""
        return url if url and is_own_endpoint(url) else ""

    return until(
        announced, lambda: activity(process.pid), "the temporary endpoint to listen", report, lambda: log_tail(log)
    )


def wait_until_served(endpoint: EndpointClient, task: str, role: Role, adapter: str, report: Reporter) -> None:
    """Return when `role` (champion or challenger) of the task is served with this adapter, however long it loads.
    ServingError when the endpoint reports why it cannot serve it, or when this is no longer the desired state."""
    first = endpoint.version()

    def served() -> bool:
        version = endpoint.version()
        if (status := version["tasks"].get(task)) is not None:
            serving, desired = status[role], status["desired"][role]
            if serving is not None and serving["adapter"] == adapter:
                return True
            errors = [text for subject, text in status["errors"].items() if subject in (role, "name", "state")]
            if errors and desired is not None and desired["adapter"] == adapter:  # else they are about another version
                raise ServingError(f"the endpoint does not serve {adapter} as {role}: {errors[0]}", _HINT)
        if version["rounds"] >= first["rounds"] + POLL_ROUNDS:
            raise ServingError(
                f"the endpoint does not serve {adapter} as {role}: that is not the desired state of {task} any more",
                f"see `finetune status {task}` for what moved the traffic (a rollback?), and run again",
            )
        return False

    until(
        served,
        lambda: activity(first["pid"]),
        f"the endpoint to serve {adapter} as {role}",
        report,
        lambda: log_tail(endpoint.log),
    )


def log_tail(log: Path | None, lines: int = 15) -> str:
    """The last lines of a log, to be appended to a message; empty without a log."""
    if log is None or not log.exists():
        return ""
    return "\nthe end of its log:\n" + "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])
