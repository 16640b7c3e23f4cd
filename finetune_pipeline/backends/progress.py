"""Wait for a condition while there is progress: a wait fails after a time without progress, not after a total time.

    until(lambda: answers(url), lambda: activity(process.pid), "the desk to answer", report)

A shared or slow machine takes ten times as long for the same work, and results must not depend on its speed. So a wait
watches a measure of progress (processor time, steps, answers) and fails when that measure stops changing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

from finetune_pipeline.errors import ServingError
from finetune_pipeline.records import Reporter

STALLED_SECONDS = 600.0  # without progress
LOG_SECONDS = 60.0
POLL_SECONDS = 0.2
GRACE_SECONDS = 30.0  # without activity after SIGTERM, before SIGKILL
GRACE_CPU_SECONDS = 0.1
CPU_SECONDS = 10.0  # less in STALLED_SECONDS is no progress: an idle server computes a little, too
DISK_BYTES = 16 << 20
T = TypeVar("T")


def until(
    condition: Callable[[], T],
    progress: Callable[[], object],
    what: str,
    report: Reporter,
    why: Callable[[], str] = lambda: "",
    stalled: float | None = None,
) -> T:
    """Call `condition` until its result is true, and return it. Logs every LOG_SECONDS; `report` may cancel the wait.

    ServingError when `progress()` has returned equal values for `stalled` seconds (default: STALLED_SECONDS); `why()`
    is added to its message, for instance the end of a log.
    """
    limit = STALLED_SECONDS if stalled is None else stalled
    began = changed = logged = time.monotonic()
    last = progress()
    while not (result := condition()):
        report.alive()
        now = time.monotonic()
        if (current := progress()) != last:
            last, changed = current, now
        if now - changed > limit:
            raise ServingError(
                f"waited {now - began:.0f} s for {what}, the last {now - changed:.0f} s without progress{why()}",
                "read the log, and run again",
            )
        if now - logged > LOG_SECONDS:
            logged = now
            report.log(f"still waiting for {what} ({now - began:.0f} s); there is progress")
        time.sleep(POLL_SECONDS)
    return result


def while_active(
    pid: int, grace: float, pause: float, ended: Callable[[], bool] = lambda: False, own: bool = True
) -> None:
    """Wait until the process has `ended`, or was inactive for `grace` seconds; checks every `pause` seconds. Without
    `own`, the activity is that of its descendants alone."""
    last, since = activity(pid, GRACE_CPU_SECONDS, own), time.monotonic()
    while not ended() and time.monotonic() - since < grace:
        time.sleep(pause)
        if (current := activity(pid, GRACE_CPU_SECONDS, own)) != last:
            last, since = current, time.monotonic()


def activity(pid: int, cpu: float | None = None, own: bool = True) -> tuple[int, int]:
    """A measure that changes while a process and its descendants work: their processor time in units of `cpu` seconds
    (default: CPU_SECONDS), and the bytes they read and wrote in units of 16 MB. (-1, -1) when the process has ended.
    Without `own`, the descendants alone: of a process that polls, as torch's elastic agent does."""
    unit = CPU_SECONDS if cpu is None else cpu
    seconds, transferred = 0.0, 0
    try:
        family = [*([psutil.Process(pid)] if own else []), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return -1, -1
    for process in family:
        try:
            times = process.cpu_times()
            seconds += times.user + times.system
            transferred += sum(process.io_counters()[2:4]) if hasattr(process, "io_counters") else 0
        except psutil.Error:
            continue  # it has ended since, or belongs to another user
    return int(seconds / unit), transferred // DISK_BYTES
