"""Runs whose process is gone are reported as failed: a process that is killed cannot say so itself.

    mark(instance, run_id)      a run says which process works on it: the tag `finetune/process`
    end_orphans(instance)       by `finetune run`, by `finetune up`, and by the sensor `orphans` while Dagster runs

    finetune/process    0b3a77c1|build-7|5c1e9f…:4026531836|48213|90127734
                        run, host, boot and process namespace, process, its start (clock ticks after the boot)

Without this a killed run is shown as running for ever, and holds up whatever waits for its end. Only processes of this
very boot of this very machine (or container) are judged: of others nothing can be known. A process number that was
given to another process is told by the start. A process of another user, which /proc may hide (`hidepid`), counts as
gone only where no process has its number. The run's id is in the tag because Dagster copies tags when a run is started
again.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import dagster as dg
import psutil

TAG = "finetune/process"
BOOT, NAMESPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def tag(run_id: str) -> dict[str, str]:
    """The tag of a run that this process works on."""
    pid = os.getpid()
    return {TAG: "|".join((run_id[:8], *_machine(), str(pid), started(pid) or ""))}


def mark(dagster: dg.DagsterInstance, run_id: str) -> None:
    """Tag a run that Dagster started in this process; nothing happens where it has the tag."""
    run, own = dagster.get_run_by_id(run_id), tag(run_id)
    if run is not None and run.tags.get(TAG) != own[TAG]:
        dagster.add_run_tags(run_id, own)


def end_orphans(dagster: dg.DagsterInstance) -> list[str]:
    """Report every unfinished run as failed whose process is gone; gives their ids."""
    gone = [run.run_id for run in dagster.get_runs(dg.RunsFilter(statuses=UNFINISHED)) if _is_orphan(run)]
    # asked again: a process that ended in between has told how its run ended
    orphans = dagster.get_runs(dg.RunsFilter(run_ids=gone, statuses=UNFINISHED)) if gone else []
    for run in orphans:
        process = run.tags[TAG].split("|")[3]
        dagster.report_run_failed(run, f"process {process}, which worked on this run, is gone (was it killed?)")
    return [run.run_id for run in orphans]


def _is_orphan(run: dg.DagsterRun) -> bool:
    parts = run.tags.get(TAG, "").split("|")
    if len(parts) != 5 or (parts[0], *parts[1:3]) != (run.run_id[:8], *_machine()) or not parts[3].isdecimal():
        return False
    found = started(int(parts[3]))
    return found is not None and parts[4] != "" and found != parts[4]


def _machine() -> tuple[str, str]:
    """Host, and what tells this boot and these process numbers from all others."""
    boot = BOOT.read_text("ascii").strip() if BOOT.exists() else f"{psutil.boot_time():.0f}"
    namespace = NAMESPACE.stat().st_ino if NAMESPACE.exists() else 0
    return socket.gethostname(), f"{boot}:{namespace}"


def started(pid: int) -> str | None:
    """When a process started, in a form that setting the clock does not change; "" where there is none, or it ended and
    only waits for its parent; None where there is one, and when it started cannot be read."""
    try:
        if not BOOT.exists():
            return f"{psutil.Process(pid).create_time():.0f}"
        after_name = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except psutil.ZombieProcess:
        return ""
    except (psutil.Error, OSError):  # with `hidepid` a process of another user looks absent, or is refused
        return None if _exists(pid) else ""
    return "" if after_name[0] in "ZX" else after_name[19]  # proc(5): the state is field 3, the start field 22


def _exists(pid: int) -> bool:
    """Whether a process has this number. The kernel says so of every user's processes, whatever /proc hides."""
    try:
        os.kill(pid, 0)  # signal 0 is not sent, only checked
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):  # the latter: no number of a process
        return False
    return True


def watch_orphans() -> dg.SensorDefinition:
    """The sensor that does it while Dagster runs."""

    @dg.sensor(
        name="orphans",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports runs as failed whose process was killed; starts no run.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = end_orphans(context.instance)
        named = ", ".join(run_id[:8] for run_id in ended)
        return dg.SkipReason(f"reported as failed, their process is gone: {named}" if ended else "every run has one")

    return sensor
