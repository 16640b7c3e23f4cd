"""Run a job as a process group on this machine: follow its events, and end the whole group when the run is canceled.

    result = run("finetune_pipeline.train.job", spec, TrainingResult, folder, report)

The description is written to `<folder>/job.json`; the job appends its events to `<folder>/events.jsonl` and its output
to `<folder>/output.log`. These are files, not pipes, so that they remain when the reading process dies.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from finetune_pipeline.backends.devices import DEVICE, VARIABLE
from finetune_pipeline.backends.follow import follow
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.backends.job_files import JobFiles
from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.records import Reporter

Result = TypeVar("Result", bound=JobData)
# By default, glibc returns every large block to the system and faults it in again page by page: an elementwise product
# of 4 MB matrices took three times as long. This keeps blocks of up to 64 MB, in huge pages. torch asks for aligned
# blocks, whose edges glibc gives to small allocations (tcache, fast bins): a freed block is then a little too small for
# the next one of its size, and the heap grew to twice what was in use. So both are off. Other allocators ignore this.
ALLOCATOR = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    "MALLOC_MMAP_THRESHOLD_": str(2**26),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}
# Spins of a waiting OpenMP thread before it sleeps (GNU OpenMP, which torch's wheels include; its default is 300,000).
# When anything else runs on the machine, a spinning thread takes the core from the thread it is waiting for.
SPIN_COUNT = "1000"


def run(
    module: str,
    spec: JobData,
    returns: type[Result],
    folder: Path,
    report: Reporter,
    threads: int | None = None,
    device: str = "auto",
) -> Result:
    """Start `python -m module <folder>/job.json <our pid>`, pass its events to `report`, and return its result.

    Raises the error that the job raised (a class of errors.py), or TrainingFailed with the end of its output when the
    process died. Any exception here, such as a canceled run, ends the whole process group: TERM, then KILL for
    processes that have become inactive. `device`: as in the declaration (config/backend.py).
    """
    files = JobFiles(folder)
    files.prepare(spec.to_json())
    environment = {**ALLOCATOR, **job_environment(threads), DEVICE: device}
    if device == "cpu":
        environment[VARIABLE] = ""
    job = start([module, str(files.description)], files, environment)
    try:
        return returns.from_json(follow(job, files, report))
    finally:
        job.end()


def start(module: Sequence[str], files: JobFiles, environment: Mapping[str, str]) -> LocalJob:
    """`python -m <module and its arguments> <our pid>` as a process group, its output in the job's folder."""
    with files.output.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,
        )
    return LocalJob(process)


@dataclass(frozen=True)
class LocalJob:
    """A process group on this machine (follow.Started)."""

    process: subprocess.Popen[bytes]

    def ended(self) -> int | None:
        return self.process.poll()

    def end(self) -> None:
        end_group(self.process)

    def kill(self) -> None:
        """SIGKILL to the group; no error when it has ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def job_environment(threads: int | None = None, processes: int = 1) -> dict[str, str]:
    """The environment of a process that computes: `threads` threads (default: $OMP_NUM_THREADS, or its share of the
    physical cores, of which `processes` use as many each), short spinning, no progress bars, no telemetry, no access
    to the Hugging Face Hub."""
    physical = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    cores = str(threads or os.environ.get("OMP_NUM_THREADS") or max(1, physical // processes))
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
        LocalJob(process).kill()


def descendants(pid: int) -> list[psutil.Process]:
    """The processes that the process started, and theirs; none when it has ended."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL to each; psutil sends none to a process that was given the id of one that has ended."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
