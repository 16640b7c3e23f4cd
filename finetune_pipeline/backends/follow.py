"""Follow a started job until it ends: its events to a reporter, its result or its error to the caller.

    follow(started, JobFiles(folder), report)      # {"steps": 94}: the result, as JSON

The same for every backend: only how a job is started, whether it has ended, and how it is stopped differ (`Started`).
"""

from __future__ import annotations

import errno
import shutil
import signal
import time
from collections.abc import Iterator
from typing import Any, Protocol

from finetune_pipeline import errors
from finetune_pipeline.backends.events import Event, LogEvent, ProgressEvent, ResultEvent, from_line
from finetune_pipeline.backends.job_files import JobFiles
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import storage_error

POLL_SECONDS = 0.2
FULL_BYTES = 2**20


class Started(Protocol):
    """A job that was started."""

    def ended(self) -> int | None:
        """None while it runs; then its exit code, or the negative number of the signal that ended it."""

    def end(self) -> None:
        """End every process of the job; no error where none is left. Those that are active may finish."""


def follow(started: Started, files: JobFiles, report: Reporter) -> dict[str, Any]:
    """Pass the events on until the job has ended, and return its result.

    Raises the error that a rank raised (a class of errors.py); TrainingFailed with the end of the output when the job
    ended without one; what `report.alive` raises.
    """
    result: dict[str, Any] | None = None
    code = 0
    for event in _events(started, files, report):
        match event:
            case LogEvent():
                report.log(event.text)
            case ProgressEvent():
                report.progress(event.what, event.done, event.total, **event.figures)
            case ResultEvent():
                result = event.result
            case int():
                code = event
    for error in files.errors():
        raise getattr(errors, error.type)(error.message, error.hint)
    if code != 0 or result is None:
        raise error_without_event(code, files)
    return result


def _events(started: Started, files: JobFiles, report: Reporter) -> Iterator[Event | int]:
    """The events of rank 0 in the order in which the job writes them, then its exit code. Calls `report.alive` every
    second."""
    with files.events().open(encoding="utf-8") as file:
        partial, checked = "", 0.0
        code: int | None = None
        while True:
            *lines, partial = (partial + file.read()).split("\n")
            yield from filter(None, map(from_line, lines))
            if code is not None:
                yield code
                return
            if time.monotonic() - checked > 1:
                checked = time.monotonic()
                report.alive()
            code = started.ended()  # if it has: read once more, for events written just before the end
            if code is None and not lines:
                time.sleep(POLL_SECONDS)


def error_without_event(code: int, files: JobFiles) -> errors.FinetuneError:
    """The error of a job that ended without an error event. On a full disk it could write neither event nor output."""
    if shutil.disk_usage(files.folder).free < FULL_BYTES:
        return storage_error(OSError(errno.ENOSPC, ""), str(files.folder))
    return errors.TrainingFailed(
        f"the job ended with {exit_status(code)} and no result; its last lines:\n{files.tail()}",
        f"read the whole output in {files.output}, and run again: finished work is kept",
    )


def exit_status(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"{name} (out of memory?)" if name == "SIGKILL" else name
    return f"exit code {code}"
