"""The entry point of a job's process: read the description, write events, stop at a checkpoint when canceled.

    def run(spec: ConversionSpec, report: Reporter) -> ConversionResult: ...

    if __name__ == "__main__":
        worker.main(run, ConversionSpec)

SIGTERM sets a flag, and `report.alive()` then raises JobCanceled, so that a training can write its checkpoint. The
same happens when the parent process ends, for whatever reason; a job that hangs then kills itself.

A job leases the devices that it computes on (devices.py), on a machine without GPUs the processor: two jobs that share
the cores (or a GPU) would both take more than twice as long. The job holds the lease, not its parent: the job of a
killed run still computes until it checks its flag. It holds a lock on its folder, too, in which the next run of the
task would write.

Under torch's elastic agent (node.py) a job is several processes. Each has a rank; rank 0 writes events and result, and
the others only their errors. The agent starts all of them again when one was killed. It would do so after an error,
too, which would only happen again: so a process that finds an error, or that the job is canceled, ends at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from finetune_pipeline.backends import devices
from finetune_pipeline.backends.events import ErrorEvent, Event, LogEvent, ProgressEvent, ResultEvent, to_line
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.backends.job_files import JobFiles
from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.errors import FinetuneError, JobCanceled
from finetune_pipeline.records import Reporter, content_id
from finetune_pipeline.store import machine_lock, write_atomic

Spec = TypeVar("Spec", bound=JobData)
PARENT_CHECK_SECONDS = 0.5
PROGRESS_SECONDS = 0.5
LOST_PEER = (RuntimeError, OSError)  # what a rank raises when another, with which it communicates, was killed
FOLDER_IN_USE = "the job of an earlier run still works in this folder; waiting for it"


@dataclass(frozen=True)
class Place:
    """This process among those of its job. `elastic`: whether torch's elastic agent started it, `restarts`: how often
    it has started it again; `round`: the same for all processes that were started together."""

    rank: int = 0
    elastic: bool = False
    restarts: int = 0
    round: str = ""

    @staticmethod
    def of_environment() -> Place:
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            return Place()
        return Place(
            int(os.environ["RANK"]),
            True,
            int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
            os.environ["MASTER_PORT"],
        )


class EventFile:
    """A reporter that appends events (backends/events.py) to a file, of progress at most two a second. `only_errors`:
    what it logs is printed instead, and so in the job's output."""

    def __init__(self, path: Path, only_errors: bool = False) -> None:
        self._path, self._only_errors = path, only_errors
        # kept open: the next run replaces the file, and must not read what this job still writes
        self._file = None if only_errors else path.open("a", encoding="utf-8")
        self._last_progress: dict[str, float] = {}
        self.canceled = False

    def write(self, event: Event) -> None:
        self._file = self._file or self._path.open("a", encoding="utf-8")
        self._file.write(to_line(event))
        self._file.flush()

    def log(self, text: str) -> None:
        if self._only_errors:
            print(text, flush=True)
        else:
            self.write(LogEvent(text))

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        due = done >= total or now - self._last_progress.get(what, 0.0) > PROGRESS_SECONDS
        if due and not self._only_errors:
            self._last_progress[what] = now
            self.write(ProgressEvent(what, done, total, figures))

    def alive(self) -> None:
        if self.canceled:
            raise JobCanceled("stopped on request", "run again to resume from the last checkpoint")


def main(run: Callable[[Spec, Reporter], JobData], kind: type[Spec], computes: bool = True) -> None:
    """Call `run` with the description, a `kind`, whose path is the first argument of the command line, and write its
    result.

    `computes`: whether it needs a device of this machine; False for a job that waits for another machine.
    The second argument is the id of the parent process (default: the actual parent): the job ends when it ends. An
    error of errors.py is written as an event, and its exit code is that of this process.
    """
    files, place = JobFiles(Path(sys.argv[1]).parent), Place.of_environment()
    parent = int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends this job
    if os.getppid() != parent:
        sys.exit(JobCanceled.exit_code)  # writes nothing: the files may belong to another run by now
    if place.elastic:
        _end_what_has_ended(files, place)
    events = EventFile(files.events(place.rank), only_errors=place.rank > 0)
    signal.signal(signal.SIGTERM, lambda *_: setattr(events, "canceled", True))
    end_with(parent)
    if place.elastic:
        _end_with_job(files, events)
    try:
        described = json.loads(files.description.read_text("utf-8"))  # before waiting: the next run may replace it
        with _turn(files, place, events, computes):
            events.alive()
            result = run(kind.from_json(described), events)
    except FinetuneError as error:
        sys.exit(_fail(error, files, place, events))
    except Exception as error:
        if not isinstance(error, LOST_PEER):
            write_atomic(files.failed, place.round)  # starting again would only repeat it
        raise
    if place.rank == 0:
        events.write(ResultEvent(result.to_json()))


def _fail(error: FinetuneError, files: JobFiles, place: Place, events: EventFile) -> int:
    """Write an error; the exit code. Under torch's agent, a cancellation counts as such only when it was requested:
    the agent also ends, with SIGTERM, the processes beside one that was killed, to start all of them again. When it was
    requested, all processes have agreed to end, and an exit code other than 0 would only make the agent start them."""
    canceled = place.elastic and isinstance(error, JobCanceled)
    if canceled and not files.stops():
        return error.exit_code
    events.write(ErrorEvent(type(error).__name__, error.message, error.hint))
    if canceled:
        return 0
    write_atomic(files.failed, place.round)
    return error.exit_code


def _end_what_has_ended(files: JobFiles, place: Place) -> None:
    """Exit where the job is canceled, or has failed: the agent has started this process again, but there is nothing to
    repeat. Where a rank failed before this one, which was started together with it, came here, the agent has to count
    this one as failed, too: else it would wait for the ranks that the other machines start again."""
    if files.failed.exists():
        sys.exit(JobCanceled.exit_code if files.failed.read_text("utf-8") == place.round else 0)
    if files.stops():
        sys.exit(0)


@contextmanager
def _turn(files: JobFiles, place: Place, report: EventFile, computes: bool) -> Iterator[None]:
    """Hold the lock of the folder and, if the job `computes`, a device. Under torch's agent, the agent of each machine
    holds both."""
    if place.elastic:
        if place.rank == 0 and (restarts := max(place.restarts, files.restarts())):
            report.log(f"a process of the job was killed; restart {restarts} of the job, from its last checkpoint")
        yield
        return
    if not computes:
        with folder_lock(files.folder, report):
            yield
        return
    needs_gpu = os.environ.get(devices.DEVICE) == "gpu"
    with folder_lock(files.folder, report), devices.lease(1, _module(), report, needs_gpu) as leased:
        if leased:
            os.environ[devices.VARIABLE] = ",".join(leased)
        yield


def _module() -> str:
    """The name of the job's module, as in `python -m finetune_pipeline.train.job`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def folder_lock(folder: Path, report: Reporter) -> AbstractContextManager[None]:
    """Only one job of this machine works in a folder at a time."""
    return machine_lock(f"job-{content_id(str(folder.absolute()))[:16]}", report, FOLDER_IN_USE)


def _end_with_job(files: JobFiles, events: EventFile) -> None:
    """Set the flag of a cancellation when the file `cancel` appears, on whatever machine. End this process when another
    rank has failed: it would wait for that rank, on a GPU until a time-out."""

    def watch() -> None:
        while not files.stops():
            if files.failed.exists():
                os._exit(JobCanceled.exit_code)
            time.sleep(PARENT_CHECK_SECONDS)
        events.canceled = True

    threading.Thread(target=watch, daemon=True).start()


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
