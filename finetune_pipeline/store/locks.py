"""Locks between the processes of this machine; the operating system releases them when a process ends.

with machine_lock("compute", report, "another job is running on this machine; waiting"): ...
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from finetune_pipeline.records import Reporter
from finetune_pipeline.store.paths import home


@contextmanager
def machine_lock(name: str, report: Reporter, waiting: str) -> Iterator[None]:
    """Hold the lock `name`. While another process holds it: logs `waiting` once, and calls `report.alive()` every
    second, so that the wait can be canceled."""
    path = home() / "locks" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, logged = FileLock(str(path)), False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1.0 if logged else 0.05)
        except Timeout:
            if not logged:
                report.log(waiting)
            logged = True
            report.alive()
    try:
        yield
    finally:
        lock.release()
