"""An endpoint to work with: the one that runs, or one started for the time of a block.

    with live_endpoint(task, store, report) as endpoint:
        endpoint.get("/version")
        httpx.post(endpoint.url + "/v1/chat/completions", headers=endpoint.headers, json=…)

The running one is used when it answers at $FINETUNE_ENDPOINT and is ours (same machine, home and data): the pipeline
must not judge a stranger. Else a process of the same code is started on a free loopback port, serving this task alone,
and ended as a process group afterwards; it writes to <home>/logs/endpoint-temporary.log.

What it is not: the way the endpoint is run for users (`finetune serve`, `make up`).
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
from finetune_pipeline.serve.api_keys import client_key
from finetune_pipeline.serve.app import identity
from finetune_pipeline.serve.traffic import private
from finetune_pipeline.store import TaskStore, home

STOP_SECONDS = 5.0  # of doing nothing, after which a temporary endpoint that was told to end is killed
ANSWER_SECONDS = 30.0
TRIES = 20  # a busy endpoint may leave a small question waiting; one that answers none of so many hangs
ROUNDS = 3  # of the supervisor: after two it has read what was desired when the wait began


@dataclass(frozen=True, slots=True)
class Live:
    """An endpoint that answers, and a key for it. `log` is where a temporary one writes."""

    url: str
    key: str
    log: Path | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def get(self, path: str) -> Any:
        """The JSON at `path`. ServingError when the endpoint does not give it."""
        for attempt in range(1, TRIES + 1):
            try:
                response = httpx.get(self.url + path, headers=self.headers, timeout=ANSWER_SECONDS)
                break
            except httpx.TransportError as error:
                if isinstance(error, httpx.TimeoutException) and attempt < TRIES:
                    continue
                raise ServingError(
                    f"the endpoint {self.url} does not answer: {error!r}{tail(self.log)}", _CURE
                ) from error
        if response.status_code != 200:
            raise ServingError(f"{self.url}{path} says {response.status_code}: {response.text[:300]}", _CURE)
        return response.json()


_CURE = "see the endpoint's log under the home folder's logs/, and run again"


@contextmanager
def live_endpoint(task: Task, store: TaskStore, report: Reporter) -> Iterator[Live]:
    """See the module's docstring. ServingError holds the end of the log when a temporary endpoint does not start."""
    key = client_key(home())
    url = address("FINETUNE_ENDPOINT")
    if is_ours(url):
        report.log(f"using the endpoint at {url}")
        yield Live(url, key)
        return
    report.log(f"no endpoint of ours at {url}: one is started for this step")
    with temporary(task.name, key, report) as endpoint:
        yield endpoint


def is_ours(url: str) -> bool:
    """Whether an endpoint of this machine, home and data answers at `url`."""
    try:
        response = httpx.get(url + "/health", timeout=3.0)
        return response.status_code == 200 and response.json().get("identity") == identity()
    except (httpx.TransportError, ValueError, AttributeError):  # nobody, or somebody who speaks otherwise
        return False


@contextmanager
def temporary(task: str, key: str, report: Reporter) -> Iterator[Live]:
    """A process of the endpoint's code on a free loopback port, for the time of the block."""
    log = home() / "logs" / "endpoint-temporary.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        announce = Path(folder) / "url"
        options = ["--port", "0", "--only", task, "--announce", str(announce), "--with-parent", str(os.getpid())]
        with private(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_pipeline.serve.app", *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=job_environment(),
                start_new_session=True,
            )
        try:
            yield Live(_url(process, announce, log, report), key, log)
        finally:
            end_group(process, STOP_SECONDS)


def _url(process: subprocess.Popen[bytes], announce: Path, log: Path, report: Reporter) -> str:
    def announced() -> str:
        if process.poll() is not None:
            raise ServingError(f"the endpoint ended at once, exit code {process.returncode}{tail(log)}", f"see {log}")
        url = announce.read_text("utf-8") if announce.exists() else ""
        return url if url and is_ours(url) else ""

    return until(
        announced, lambda: activity(process.pid), "the temporary endpoint to listen", report, lambda: tail(log)
    )


def wait_served(endpoint: Live, task: str, role: str, adapter: str, report: Reporter) -> None:
    """Return when `role` (champion or challenger) of the task is served with exactly this adapter, however long it
    loads. ServingError as soon as the endpoint says why it cannot, or follows another desired state than this."""
    began = endpoint.get("/version")

    def served() -> bool:
        seen = endpoint.get("/version")
        now = seen["tasks"].get(task, {})
        if ((now.get(role) or {}).get("adapter")) == adapter:
            return True
        desired = ((now.get("desired") or {}).get(role) or {}).get("adapter") == adapter  # else an error is older
        why = [text for what, text in now.get("errors", {}).items() if what in (role, "name", "state")]
        if desired and why:
            raise ServingError(f"the endpoint does not serve {adapter} as {role}: {why[0]}", _CURE)
        if seen["rounds"] >= began["rounds"] + ROUNDS:
            raise ServingError(
                f"the endpoint does not serve {adapter} as {role}: that is not the desired state of {task} any more",
                "somebody moved the traffic meanwhile (a rollback?); see `finetune status`, and run again",
            )
        return False

    until(
        served,
        lambda: activity(began["pid"]),
        f"the endpoint to serve {adapter} as {role}",
        report,
        lambda: tail(endpoint.log),
    )


def tail(log: Path | None, lines: int = 15) -> str:
    """The end of a log, as a continuation of a message."""
    if log is None or not log.exists():
        return ""
    return "\nthe end of its log:\n" + "\n".join(log.read_text("utf-8", "replace").splitlines()[-lines:])
