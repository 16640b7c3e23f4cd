"""Run a job as a process group on this machine: follow its events, end it as a whole when the run is cancelled.

    result = run("finetune_pipeline.train.job", {"num_epochs": 2, ...}, folder, report)

The description goes to `<folder>/job.json`; the job appends its events to `<folder>/events.jsonl` and its output to
`<folder>/output.log`. A file, not a pipe, because a reader that dies must not take the job's memory of itself along.
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
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from finetune_pipeline import errors
from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import storage_error

POLL_SECONDS = 0.2
FULL_BYTES = 2**20
# glibc hands every large block back to the system and gets it anew, page by page: an elementwise product of matrices
# of 4 MB took three times as long as it needs. Jobs keep what they have, in huge pages. Other allocators ignore this.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}
# How often a thread looks whether the others are ready before it sleeps (GNU OpenMP, which torch's wheels bring with
# them; its default is 300,000). One that keeps looking takes the core from the one that it waits for, as soon as
# anything else runs on the machine.
SPINS = "1000"


def run(
    module: str, spec: Mapping[str, Any], folder: Path, report: Reporter, threads: int | None = None
) -> dict[str, Any]:
    """Start `python -m module <folder>/job.json <our pid>`, pass its events on to `report`, and give its result.

    Raises what the job raised (by its name in errors.py), or TrainingFailed with the end of its output when it died.
    Any exception here, a cancelled run among them, ends the whole process group: TERM, and KILL for what then does
    nothing any more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.json").write_text(json.dumps(spec, ensure_ascii=False), "utf-8")
    events, said = folder / "events.jsonl", folder / "output.log"
    for file in (events, said):
        file.unlink(missing_ok=True)  # the job of a killed run may still tell its end: to the old files
    events.touch()
    log = os.open(said, os.O_WRONLY | os.O_CREAT, 0o600)  # it may quote rows
    with os.fdopen(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder / "job.json"), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**ALLOCATOR, **job_environment(threads)},
            start_new_session=True,
        )
    try:
        return _follow(process, events, said, report)
    finally:
        end_group(process)


def job_environment(threads: int | None = None) -> dict[str, str]:
    """The environment of a process that computes: one thread a core (or $OMP_NUM_THREADS), which waits for the others
    asleep, no progress bars, no telemetry, no hub."""
    cores = str(threads or os.environ.get("OMP_NUM_THREADS") or psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    quiet = {
        "OMP_NUM_THREADS": cores,
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS),
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
    with events.open(encoding="utf-8") as lines:
        rest, ended, checked = "", False, 0.0
        while True:
            rest += lines.read()
            *whole, rest = rest.split("\n")
            for line in whole:
                try:
                    event = json.loads(line)
                except ValueError:  # torn by a full disk
                    continue
                if event["event"] == "log":
                    report.log(event["text"])
                elif event["event"] == "progress":
                    report.progress(event["what"], event["done"], event["total"], **event["figures"])
                elif event["event"] == "result":
                    result = event["result"]
                elif event["event"] == "error":
                    failure = getattr(errors, event["type"])(event["message"], event["hint"])
            if ended:
                break
            if time.monotonic() - checked > 1:
                checked = time.monotonic()
                report.alive()
            ended = process.poll() is not None  # once more around: events written just before the end
            if not ended and not whole:
                time.sleep(POLL_SECONDS)
    if failure is not None:
        raise failure
    if process.returncode != 0 or result is None:
        raise _without_result(process.returncode, output)
    return result


def _without_result(code: int, output: Path) -> errors.FinetuneError:
    """Why a job ended that could not say it itself: on a full disk, neither error nor output could be written."""
    if shutil.disk_usage(output.parent).free < FULL_BYTES:
        return storage_error(OSError(errno.ENOSPC, ""), str(output.parent))
    return errors.TrainingFailed(
        f"the job ended with {_ending(code)} and no result; its last lines:\n{_tail(output)}",
        f"the whole output is in {output}; run again: what is finished is kept",
    )


def end_group(process: subprocess.Popen[bytes], grace: float | None = None) -> None:
    """End the job and everything it started; harmless when nothing is left. It is told to end, and may take the time it
    needs (a training writes its checkpoint, on a busy machine slowly): killed is what does nothing for `grace` seconds
    (default: GRACE_SECONDS), or everything at once when a person interrupts this wait as well."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        while_active(process.pid, GRACE_SECONDS if grace is None else grace, 0.05, lambda: process.poll() is not None)
    except ProcessLookupError:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ending(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"{name} (out of memory?)" if name == "SIGKILL" else name
    return f"exit code {code}"


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
