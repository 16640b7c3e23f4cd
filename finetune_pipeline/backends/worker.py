"""The entry point of a job's process: read the description, write events, stop at a checkpoint when canceled.

    def run(spec: ConversionSpec, report: Reporter) -> ConversionResult: ...

    if __name__ == "__main__":
        worker.main(run, ConversionSpec)

SIGTERM sets a flag, and `report.alive()` then raises JobCanceled, so that a training can write its checkpoint. The
same happens when the parent process ends, for whatever reason; a job that hangs then kills itself.

One job runs at a time on a machine: two that share the cores (or a GPU) would both take more than twice as long. The
job holds the lock, not its parent: the job of a killed run still computes until it checks its flag, and the next run of
the task would write into the same folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from finetune_pipeline.backends.events import ErrorEvent, Event, LogEvent, ProgressEvent, ResultEvent, to_line
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.errors import FinetuneError, JobCanceled
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import machine_lock

Spec = TypeVar("Spec", bound=JobData)
PARENT_CHECK_SECONDS = 0.5
PROGRESS_SECONDS = 0.5


class EventFile:
    """A reporter that appends events (backends/events.py) to a file, of progress at most two a second."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._last_progress: dict[str, float] = {}
        self.canceled = False

    def write(self, event: Event) -> None:
        self._file.write(to_line(event))
        self._file.flush()

    def log(self, text: str) -> None:
        self.write(LogEvent(text))

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        if done >= total or now - self._last_progress.get(what, 0.0) > PROGRESS_SECONDS:
            self._last_progress[what] = now
            self.write(ProgressEvent(what, done, total, figures))

    def alive(self) -> None:
        if self.canceled:
            raise JobCanceled("stopped on request", "run again to resume from the last checkpoint")


def main(run: Callable[[Spec, Reporter], JobData], kind: type[Spec]) -> None:
    """Call `run` with the description, a `kind`, whose path is the first argument of the command line, and write its
    result.

    The second argument is the id of the parent process (default: the actual parent): the job ends when it ends. An
    error of errors.py is written as an event, and its exit code is that of this process.
    """
    path, parent = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this job
    if os.getppid() != parent:
        sys.exit(JobCanceled.exit_code)  # writes nothing: the files may belong to another run by now
    events = EventFile(path.with_name("events.jsonl"))
    signal.signal(signal.SIGTERM, lambda *_: setattr(events, "canceled", True))
    end_with(parent)
    try:
        described = json.loads(path.read_text("utf-8"))  # before waiting: the next run may replace the file
        with machine_lock("compute", events, "another job is computing on this machine; waiting for it"):
            events.alive()
            result = run(kind.from_json(described), events)
    except FinetuneError as error:
        events.write(ErrorEvent(type(error).__name__, error.message, error.hint))
        sys.exit(error.exit_code)
    events.write(ResultEvent(result.to_json()))


def end_with(parent: int) -> None:
    """Send this process SIGTERM when its parent `parent` has ended, and SIGKILL to its process group (itself, if
    it leads none) when it is then inactive for GRACE_SECONDS. A thread polls, since only Linux can notify."""
    threading.Thread(target=_watch, args=(parent, GRACE_SECONDS), daemon=True).start()


def _watch(parent: int, grace: float) -> None:
    own = os.getpid()
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(own, signal.SIGTERM)
    while_active(own, grace, grace / 6)  # seldom: each check costs processor time, too
    if os.getpgid(0) == own:
        os.killpg(own, signal.SIGKILL)
    os.kill(own, signal.SIGKILL)
