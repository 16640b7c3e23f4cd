"""The devices of this machine, leased to one job each: its GPUs, or on a machine without any its processor.

    with lease(2, "finetune_pipeline.train.job", report) as devices:     # ("GPU-5f0c…", "GPU-91ab…")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)

A job waits until all devices that it asks for are free, and behind the jobs that came before it for some of the same,
so that one that needs four GPUs is not passed for ever by those that need one. Leases are locks of the operating system
under `<home>/locks/devices/<host>`: those of a killed job are free at once, and no server or daemon is needed.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import home

VARIABLE = "CUDA_VISIBLE_DEVICES"
DEVICE = "FINETUNE_DEVICE"  # the declared device of a job, for its process: auto, gpu or cpu
CPU = "cpu"
POLL_SECONDS = 0.5
QUERY_SECONDS = 120.0
# Exit codes of nvidia-smi (its manual) with which torch does not find a GPU either: no device was found, the driver is
# not loaded, its library is missing.
NO_GPU = (6, 9, 12)
QUERY_HINT = f"repair the driver; or use no GPU: `device: cpu` of the backend, or an empty ${VARIABLE}"


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, by UUID: those of $CUDA_VISIBLE_DEVICES, or all of the machine; none on a
    machine without a driver. An index in the variable counts as nvidia-smi counts; where there is no nvidia-smi it
    stays as it is, and so do MIG instances, which have to be listed in the variable. TrainingFailed when nvidia-smi
    fails, since the GPUs are then not known."""
    allowed = os.environ.get(VARIABLE)
    if allowed is None:
        return tuple(_uuids().values())
    listed = [part.strip() for part in allowed.split(",") if part.strip() not in ("", "-1")]
    uuids = _uuids() if any(part.isdecimal() for part in listed) else {}
    return tuple(dict.fromkeys(uuids.get(part, part) for part in listed))


def _uuids() -> dict[str, str]:
    """The UUID of each GPU by its index; none without nvidia-smi, or without a driver that runs."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    query = [command, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=QUERY_SECONDS)
    except subprocess.TimeoutExpired:
        raise TrainingFailed(f"nvidia-smi has not answered for {QUERY_SECONDS:.0f} s", QUERY_HINT) from None
    if listed.returncode in NO_GPU:
        return {}
    if listed.returncode != 0:  # () would let the job compute on a GPU that it has not leased
        said = (listed.stdout + listed.stderr).strip()
        raise TrainingFailed(f"nvidia-smi failed with exit code {listed.returncode}: {said}", QUERY_HINT)
    pairs = (line.split(",") for line in listed.stdout.splitlines() if "," in line)
    return {index.strip(): uuid.strip() for index, uuid in pairs}


@contextmanager
def lease(count: int, job: str, report: Reporter, needs_gpu: bool = False) -> Iterator[tuple[str, ...]]:
    """Hold `count` GPUs, or the processor, which is one device whatever the count: the GPUs, () for the processor.

    While it waits it logs what it waits for, and calls `report.alive`. TrainingFailed when this machine has fewer than
    `count` GPUs (but not none, unless it `needs_gpu`), or they are not known."""
    found = gpus()
    if (found or needs_gpu) and len(found) < count:
        raise TrainingFailed(
            f"the job asks for {count} GPU{'s' * (count > 1)}, and {len(found)} of this machine may be used",
            "lower `processes_per_node` of the backend, or list more GPUs in $CUDA_VISIBLE_DEVICES",
        )
    with ExitStack() as held:
        yield _wait(held, found or (CPU,), count if found else 1, job, report)


def _wait(held: ExitStack, devices: Sequence[str], count: int, job: str, report: Reporter) -> tuple[str, ...]:
    folder, said = _folder(), ""
    folder.mkdir(parents=True, exist_ok=True)
    with _Ticket(folder, devices) as ticket:
        while True:
            with FileLock(str(folder / "queue.lock")):
                ahead = ticket.ahead()
                taken = [] if ahead else _take(folder, devices, count)
            if taken:
                break
            if (text := _waiting_for(folder, devices, count, ahead)) != said:
                said = text
                report.log(text)
            report.alive()
            time.sleep(POLL_SECONDS)
    for device, lock in taken:
        held.callback(lock.release)
        _holder(folder, device).write_text(json.dumps(_description(job)), "utf-8")
    return tuple(device for device, _ in taken if device != CPU)


def _folder() -> Path:
    """The locks of this machine's devices: machines may share a home folder."""
    return home() / "locks" / "devices" / platform.node()


def _take(folder: Path, devices: Sequence[str], count: int) -> list[tuple[str, FileLock]]:
    """`count` free devices with their locks; none where fewer are free."""
    taken: list[tuple[str, FileLock]] = []
    for device in devices:
        lock = FileLock(str(folder / f"{device.replace('/', '_')}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        taken.append((device, lock))
        if len(taken) == count:
            return taken
    for _, lock in taken:
        lock.release()
    return []


class _Ticket:
    """A place in the queue: a file that is locked as long as its job waits. Beside it, a file with the devices of which
    the job wants some."""

    def __init__(self, folder: Path, devices: Sequence[str]) -> None:
        self._folder, self._devices, self._queue = folder, devices, FileLock(str(folder / "queue.lock"))

    def __enter__(self) -> _Ticket:
        with self._queue:
            self.number = max((int(path.stem) for path in self._tickets()), default=0) + 1
            self._path = self._folder / f"{self.number:08d}.ticket"
            _wanted(self._path).write_text(json.dumps(self._devices), "utf-8")
            self._lock = FileLock(str(self._path))
            self._lock.acquire(timeout=0)
        return self

    def __exit__(self, *_: object) -> None:
        with self._queue:
            _delete(self._path)
            self._lock.release()

    def ahead(self) -> int:
        """How many jobs wait before this one for some of its devices. Tickets of jobs that have ended are deleted."""
        before = [path for path in self._tickets() if int(path.stem) < self.number and self._waits(path)]
        return sum(not set(self._devices).isdisjoint(json.loads(_wanted(path).read_text("utf-8"))) for path in before)

    def _tickets(self) -> list[Path]:
        return sorted(self._folder.glob("*.ticket"))

    @staticmethod
    def _waits(path: Path) -> bool:
        lock = FileLock(str(path))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        _delete(path)
        lock.release()
        return False


def _wanted(ticket: Path) -> Path:
    return ticket.with_suffix(".devices")


def _delete(ticket: Path) -> None:
    for path in (ticket, _wanted(ticket)):
        path.unlink(missing_ok=True)


def _description(job: str) -> dict[str, object]:
    return {"job": job, "process": os.getpid(), "since": datetime.now().astimezone().isoformat(timespec="seconds")}


def _holder(folder: Path, device: str) -> Path:
    return folder / f"{device.replace('/', '_')}.json"


def _waiting_for(folder: Path, devices: Sequence[str], count: int, ahead: int) -> str:
    """What a job waits for, in one line."""
    what = "the processor" if devices[0] == CPU else f"{count} of {len(devices)} GPUs"
    behind = f", behind {ahead} other job{'s' * (ahead > 1)}" if ahead else ""
    held = "; ".join(text for device in devices if (text := _held(folder, device)))
    return f"waiting for {what} of this machine{behind}: {held or 'in use'}"


def _held(folder: Path, device: str) -> str:
    """Who holds a device, or "" where it is free."""
    lock = FileLock(str(folder / f"{device.replace('/', '_')}.lock"))
    try:
        lock.acquire(timeout=0)
        lock.release()
        return ""
    except Timeout:
        pass
    try:
        holder = json.loads(_holder(folder, device).read_text("utf-8"))
        return f"{device} is used by {holder['job']} (process {holder['process']}) since {holder['since']}"
    except (OSError, ValueError, LookupError):  # it is being written
        return f"{device} is used"
