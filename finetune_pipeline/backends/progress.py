"""Waiting as long as work goes on: what ends a wait is that nothing has moved for a while, never that it took long.

    until(lambda: answers(url), lambda: activity(process.pid), "the desk to answer", report)

A machine that is shared or slow takes ten times as long for the same work, and nothing may depend on that but the time.
So a wait has a figure of progress (processor time, steps, answers), and gives up when that figure stands still.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

from finetune_pipeline.errors import ServingError
from finetune_pipeline.records import Reporter

STALLED_SECONDS = 600.0  # without any progress
SAY_SECONDS = 60.0
PAUSE_SECONDS = 0.2
GRACE_SECONDS = 30.0  # a process that is told to end, and neither computes nor writes for so long, is killed
GRACE_CPU_SECONDS = 0.1
CPU_SECONDS = 10.0  # an idle server computes a little as well: less than this in STALLED_SECONDS is no progress
DISK_BYTES = 16 << 20
T = TypeVar("T")


def until(
    ask: Callable[[], T],
    progress: Callable[[], object],
    what: str,
    report: Reporter,
    why: Callable[[], str] = lambda: "",
    stalled: float | None = None,
) -> T:
    """Ask until the answer is something, and give it. Says each minute that it still waits; `report` may cancel it.

    ServingError when `progress()` has been equal for `stalled` seconds (default: STALLED_SECONDS); `why()` is added to
    its message, the end of a log for instance.
    """
    limit = STALLED_SECONDS if stalled is None else stalled
    began = moved = said = time.monotonic()
    seen = progress()
    while not (found := ask()):
        report.alive()
        now = time.monotonic()
        if (figure := progress()) != seen:
            seen, moved = figure, now
        if now - moved > limit:
            raise ServingError(
                f"waited {now - began:.0f} s for {what}, of which nothing moved for {now - moved:.0f} s{why()}",
                "see the log, and run again",
            )
        if now - said > SAY_SECONDS:
            said = now
            report.log(f"still waiting for {what} ({now - began:.0f} s); work goes on")
        time.sleep(PAUSE_SECONDS)
    return found


def while_active(pid: int, grace: float, pause: float, ended: Callable[[], bool] = lambda: False) -> None:
    """Wait until the process has `ended`, or has done nothing for `grace` seconds; looks every `pause` seconds."""
    seen, since = activity(pid, GRACE_CPU_SECONDS), time.monotonic()
    while not ended() and time.monotonic() - since < grace:
        time.sleep(pause)
        if (now := activity(pid, GRACE_CPU_SECONDS)) != seen:
            seen, since = now, time.monotonic()


def activity(pid: int, cpu: float | None = None) -> tuple[int, int]:
    """What changes while a process and those it started work: their processor time in units of `cpu` seconds, and what
    they read and wrote in units of 16 MB. (-1, -1) when it is gone."""
    unit = CPU_SECONDS if cpu is None else cpu
    seconds, moved = 0.0, 0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return -1, -1
    for process in family:
        try:
            times = process.cpu_times()
            seconds += times.user + times.system
            moved += sum(process.io_counters()[2:4]) if hasattr(process, "io_counters") else 0
        except psutil.Error:
            continue  # it ended in the meantime, or is somebody else's
    return int(seconds / unit), moved // DISK_BYTES
