"""One machine of a job of several processes: torch's elastic agent, with devices, cancellation and the parent's end.

    python -m finetune_pipeline.backends.node <folder>/launch.json <parent pid>     # beside the parent
    python -m finetune_pipeline.backends.node <folder>/launch.json                  # on another machine

The agent (`torch.distributed.run`, torchrun) starts the job's processes here, each with a rank, finds the agents of the
other machines at the rendezvous, and starts all processes again when one was killed. This module adds what the agent
does not know:

- it leases this machine's devices first, and beside the parent holds the job's folder (not on Ray and Kubernetes, which
  give devices);
- when its parent has ended (by its process id, or on another machine by the file `alive`), it cancels the job: the
  file `cancel` reaches the processes of every machine, and they end at their next checkpoint;
- what is inactive for GRACE_SECONDS after a cancellation is killed here, in whatever process group it is.

On one machine nothing listens beyond loopback: the agent and its processes find each other through a private file.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_pipeline.backends import devices
from finetune_pipeline.backends.events import ErrorEvent
from finetune_pipeline.backends.follow import exit_status
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.backends.job_files import JobFiles, untouched
from finetune_pipeline.backends.local import ALLOCATOR, descendants, job_environment, kill
from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.backends.worker import EventFile, folder_lock
from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import write_atomic

PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
CHECK_SECONDS = 0.5
END_SECONDS = 5.0  # from the end of a canceled job's processes to that of the agent
SILENT_SECONDS = 60.0  # without a sign of the parent, or of a machine, for one that cannot see it
JOIN_SECONDS = 30 * 86400  # the other machines may wait for devices; a person or a scheduler ends that, not a time
LOOPBACK = ("127.", "localhost", "[::1]")
STORE = "FINETUNE_STORE"  # the file through which the processes of one machine find each other


@dataclass(frozen=True)
class Launch(JobData):
    """launch.json. `module`: the job; `rendezvous`: host and port of the first machine, None for one machine; `id`: of
    this launch; `leases`: whether the devices are leased here; `device`: as in the declaration."""

    module: str
    id: str
    nodes: int
    processes_per_node: int
    max_restarts: int
    threads: int | None
    rendezvous: str | None
    device: str
    leases: bool


def main() -> None:
    """Run this machine's part of a job; exits with 0 when every process has ended as it should."""
    options = _options()
    files = JobFiles(options.launch.parent)
    launch = Launch.from_json(json.loads(options.launch.read_text("utf-8")))
    launch = replace(launch, rendezvous=options.rendezvous or launch.rendezvous)
    first = options.first_parent is not None
    _Watch(files, options.first_parent or options.parent, first).start()
    if not first:
        _print_into(files)
    _adopt_orphans()
    os.environ.update(ALLOCATOR | job_environment(launch.threads, launch.processes_per_node))
    report = _NodeEvents(files, first)
    try:
        _run(launch, files, report, first)
    except FinetuneError as error:
        report.write(ErrorEvent(type(error).__name__, error.message, error.hint))
        sys.exit(error.exit_code)
    finally:
        kill(descendants(os.getpid()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m finetune_pipeline.backends.node")
    parser.add_argument("launch", type=Path, help="launch.json in the folder of the job")
    parser.add_argument("first_parent", type=int, nargs="?", help="process id of the parent, on its own machine")
    parser.add_argument("--parent", type=int, help="process id of what started this on another machine")
    parser.add_argument("--rendezvous", help="host and port of the first machine, if it was not known before")
    return parser.parse_args()


def _adopt_orphans() -> None:
    """Let what a rank leaves behind become a child of this process, which can then find it (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class _NodeEvents(EventFile):
    """The reporter of a machine: the one beside the parent writes into the events, the others print."""

    def __init__(self, files: JobFiles, first: bool) -> None:
        own = files.folder / f"events-{socket.gethostname()}-{os.getpid()}.jsonl"
        super().__init__(files.events() if first else own, only_errors=not first)
        self._files = files

    def alive(self) -> None:
        self.canceled = self._files.stops()
        super().alive()


def _run(launch: Launch, files: JobFiles, report: Reporter, first: bool) -> None:
    """Only the first machine holds the folder: it waits there for the others, which may share its home folder."""
    if launch.device == "cpu":
        os.environ[devices.VARIABLE] = ""
    if not launch.leases:
        return _elastic(launch, files)
    with folder_lock(files.folder.parent, report) if first else nullcontext():
        count = launch.processes_per_node
        with devices.lease(count, launch.module, report, needs_gpu=launch.device == "gpu") as leased:
            if leased:
                os.environ[devices.VARIABLE] = ",".join(leased)
            return _elastic(launch, files)


def _elastic(launch: Launch, files: JobFiles) -> None:
    """torch's agent in this process, until the job has ended; SystemExit where it failed."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # the processes of each start get a new store; that of the agent would keep the keys of the start before
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with tempfile.TemporaryDirectory(prefix="finetune-") as private:
        if launch.nodes == 1:
            os.environ[STORE] = f"{private}/store"
            os.environ |= {name: _loopback() for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
        try:
            run.main([*rendezvous(launch, Path(private)), "-m", launch.module, str(files.description)])
        except ChildFailedError as error:
            files.given_up.touch()  # first: who finds `failed` finds both
            write_atomic(files.failed, "")
            rank, failure = error.get_first_failure()
            print(f"rank {rank} ended with {exit_status(failure.exitcode)}", flush=True)
            sys.exit(1)
        if files.given_up.exists():  # on another machine
            sys.exit(1)


def rendezvous(launch: Launch, private: Path) -> list[str]:
    """The options of torchrun for this launch; `private`: a folder of this machine alone."""
    alone = launch.nodes == 1
    conf = f"join_timeout={JOIN_SECONDS},read_timeout={JOIN_SECONDS}" + (",store_type=file" if alone else "")
    host = (launch.rendezvous or "127.0.0.1").rpartition(":")[0]
    return [
        f"--nnodes={launch.nodes}",
        f"--nproc-per-node={launch.processes_per_node}",
        f"--max-restarts={launch.max_restarts}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={private / 'rendezvous' if alone else launch.rendezvous}",
        f"--rdzv-id={launch.id}",
        f"--rdzv-conf={conf}",
        *(["--local-addr=127.0.0.1"] if alone or host.startswith(LOOPBACK) else []),
    ]


def _loopback() -> str:
    """The name of the loopback interface."""
    return next(name for _, name in socket.if_nameindex() if name.startswith("lo"))


def _print_into(files: JobFiles) -> None:
    """Let this process and those it starts print into a file of the job's folder, which the parent reads. Private: it
    may contain rows."""
    path = files.folder / f"output-{socket.gethostname()}-{os.getpid()}.log"
    print(f"the output is in {path}", flush=True)
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for stream in (1, 2):
        os.dup2(output, stream)


class _Watch(threading.Thread):
    """Cancels the job when its parent has ended, and kills what is then inactive, or was canceled otherwise; or when
    another machine has given up, for which torch's agent would wait."""

    def __init__(self, files: JobFiles, parent: int | None, first: bool) -> None:
        super().__init__(daemon=True)
        self._files, self._first = files, first
        self._orphaned = [_parent_ended(parent)] if parent else []
        self._orphaned += [] if first else [untouched(files.alive, SILENT_SECONDS)]

    def run(self) -> None:
        while not self._files.stops() and not self._files.given_up.exists():
            with suppress(FileNotFoundError):  # another run began, and has deleted the folder
                if not self._first:
                    self._files.alive_on(socket.gethostname()).touch()
                if any(orphaned() for orphaned in self._orphaned):
                    self._files.cancel.touch()
            time.sleep(CHECK_SECONDS)
        own = os.getpid()
        while_active(own, GRACE_SECONDS, CHECK_SECONDS, self._all_ended, own=False)
        kill(descendants(own))
        time.sleep(END_SECONDS)  # it ends by itself where all of its processes have
        os._exit(1)  # not SIGKILL, which the kernel does not deliver to the first process of a container

    def _all_ended(self) -> bool:
        with suppress(FileNotFoundError):  # another run began, and has deleted the folder
            self._files.ending.touch()
        return not descendants(os.getpid())


def _parent_ended(parent: int) -> Callable[[], bool]:
    return lambda: os.getppid() != parent


if __name__ == "__main__":
    main()
