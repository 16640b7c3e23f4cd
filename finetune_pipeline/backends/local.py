"""Run a job as a process group on this machine: follow its events, and end the whole group when the run is canceled.

    result = run("finetune_pipeline.train.job", spec, TrainingResult, folder, report)

The description is written to `<folder>/job.json`; the job appends its events to `<folder>/events.jsonl` and its output
to `<folder>/output.log`. These are files, not pipes, so that they remain when the reading process dies.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from finetune_pipeline import errors
from finetune_pipeline.backends.events import ErrorEvent, Event, LogEvent, ProgressEvent, ResultEvent, from_line
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import storage_error

Result = TypeVar("Result", bound=JobData)
POLL_SECONDS = 0.2
FULL_BYTES = 2**20
# By default, glibc returns every large block to the system and faults it in again page by page: an elementwise product
# of 4 MB matrices took three times as long. This keeps the memory, in huge pages. Other allocators ignore the settings.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}
# Spins of a waiting OpenMP thread before it sleeps (GNU OpenMP, which torch's wheels include; its default is 300,000).
# When anything else runs on the machine, a spinning thread takes the core from the thread it is waiting for.
SPIN_COUNT = "1000"


def run(
    module: str, spec: JobData, returns: type[Result], folder: Path, report: Reporter, threads: int | None = None
) -> Result:
    """Start `python -m module <folder>/job.json <our pid>`, pass its events to `report`, and return its result.

    Raises the error that the job raised (a class of errors.py), or TrainingFailed with the end of its output when the
    process died. Any exception here, such as a canceled run, ends the whole process group: TERM, then KILL for
    processes that have become inactive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(spec.to_json(), ensure_ascii=False), "utf-8")
    events, log = folder / "events.jsonl", folder / "output.log"
    for file in (events, log):
        file.unlink(missing_ok=True)  # new files: the job of a killed run may still append to the old ones
    events.touch()
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as output:  # private: it may contain rows
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder / "job.json"), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**ALLOCATOR, **job_environment(threads)},
            start_new_session=True,
        )
    try:
        return returns.from_json(_follow(process, events, log, report))
    finally:
        end_group(process)


def job_environment(threads: int | None = None) -> dict[str, str]:
    """The environment of a process that computes: `threads` threads (default: $OMP_NUM_THREADS, or one per physical
    core), short spinning, no progress bars, no telemetry, no access to the Hugging Face Hub."""
    cores = str(threads or os.environ.get("OMP_NUM_THREADS") or psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    quiet = {
        "OMP_NUM_THREADS": cores,
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    return {**os.environ, **quiet}


def _follow(process: subprocess.Popen[bytes], events: Path, output: Path, report: Reporter) -> dict[str, Any]:
    result: dict[str, Any] | None = None
    failure: errors.FinetuneError | None = None
    for event in _events(process, events, report):
        match event:
            case LogEvent():
                report.log(event.text)
            case ProgressEvent():
                report.progress(event.what, event.done, event.total, **event.figures)
            case ResultEvent():
                result = event.result
            case ErrorEvent():
                failure = getattr(errors, event.type)(event.message, event.hint)
    if failure is not None:
        raise failure
    if process.returncode != 0 or result is None:
        raise _error_without_event(process.returncode, output)
    return result


def _events(process: subprocess.Popen[bytes], path: Path, report: Reporter) -> Iterator[Event]:
    """The events in the order in which the job writes them, until it has ended. Calls `report.alive` every second."""
    with path.open(encoding="utf-8") as file:
        partial, ended, checked = "", False, 0.0
        while True:
            *lines, partial = (partial + file.read()).split("\n")
            yield from filter(None, map(from_line, lines))
            if ended:
                return
            if time.monotonic() - checked > 1:
                checked = time.monotonic()
                report.alive()
            ended = process.poll() is not None  # read once more: events written just before the end
            if not ended and not lines:
                time.sleep(POLL_SECONDS)


def _error_without_event(code: int, output: Path) -> errors.FinetuneError:
    """The error of a job that ended without an error event. On a full disk it could write neither event nor output."""
    if shutil.disk_usage(output.parent).free < FULL_BYTES:
        return storage_error(OSError(errno.ENOSPC, ""), str(output.parent))
    return errors.TrainingFailed(
        f"the job ended with {_exit_status(code)} and no result; its last lines:\n{_tail(output)}",
        f"read the whole output in {output}, and run again: finished work is kept",
    )


def end_group(process: subprocess.Popen[bytes], grace: float | None = None) -> None:
    """End the job and every process it started; no error when none is left.

    After SIGTERM the job may run as long as it is active (a training writes its checkpoint, slowly on a busy machine).
    The group is killed when the job has been inactive for `grace` seconds (default: GRACE_SECONDS), or at once when
    this wait is interrupted.
    """
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while_active(process.pid, GRACE_SECONDS if grace is None else grace, 0.05, lambda: process.poll() is not None)
    except ProcessLookupError:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _exit_status(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"{name} (out of memory?)" if name == "SIGKILL" else name
    return f"exit code {code}"


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
