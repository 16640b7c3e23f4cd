"""Locks among the processes of this machine; the system releases them when a process dies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from finetune_pipeline.records import Reporter
from finetune_pipeline.store.paths import home


@contextmanager
def machine_lock(name: str, report: Reporter, waiting: str) -> Iterator[None]:
    """A lock among the processes of this machine. Says `waiting` once, and stays cancellable while it waits."""
    path = home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, said = FileLock(str(path)), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1.0 if said else 0.05)
        except Timeout:
            if not said:
                report.log(waiting)
            said = True
            report.alive()
    try:
        yield
    finally:
        lock.release()
