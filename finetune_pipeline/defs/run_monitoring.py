"""Report runs as failed whose process was killed: a killed process cannot do it itself.

    tag_run(instance, run_id)      a run states which process executes it: the tag `finetune/process`
    fail_dead_runs(instance)       by `finetune run`, by `finetune up`, and by the sensor `run_monitoring`

    finetune/process    0b3a77c1|build-7|5c1e9f…:4026531836|48213|90127734
                        run, host, boot and process namespace, process id, its start (clock ticks after the boot)

Without this Dagster shows a killed run as running for ever, and whatever waits for its end waits for ever. Only
processes of this boot of this machine (or container) are checked: of others nothing can be known. A process id that
the system gave to another process is recognized by the start time. A process of another user, which /proc may hide
(`hidepid`), counts as dead only where no process has its id. The run's id is in the tag because Dagster copies tags
when a run is executed again. Dagster's own run monitoring uses a run launcher; a run of `finetune run` has none.
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
    """The tag of a run that this process executes."""
    pid = os.getpid()
    return {TAG: "|".join((run_id[:8], *_machine(), str(pid), started(pid) or ""))}


def tag_run(dagster: dg.DagsterInstance, run_id: str) -> None:
    """Tag a run that Dagster started in this process; does nothing where it has the tag."""
    run, own = dagster.get_run_by_id(run_id), tag(run_id)
    if run is not None and run.tags.get(TAG) != own[TAG]:
        dagster.add_run_tags(run_id, own)


def fail_dead_runs(dagster: dg.DagsterInstance) -> list[str]:
    """Report every unfinished run as failed whose process does not exist any more; returns their ids."""
    gone = [run.run_id for run in dagster.get_runs(dg.RunsFilter(statuses=UNFINISHED)) if _is_dead(run)]
    # asked again: a process that ended in between has reported how its run ended
    dead = dagster.get_runs(dg.RunsFilter(run_ids=gone, statuses=UNFINISHED)) if gone else []
    for run in dead:
        process = run.tags[TAG].split("|")[3]
        dagster.report_run_failed(
            run, f"process {process}, which executed this run, does not exist any more (was it killed?)"
        )
    return [run.run_id for run in dead]


def _is_dead(run: dg.DagsterRun) -> bool:
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
    """Whether a process has this number. This works for the processes of every user, whatever /proc hides."""
    try:
        os.kill(pid, 0)  # signal 0 is not sent, only checked
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):  # the latter: no number of a process
        return False
    return True


def run_monitoring_sensor() -> dg.SensorDefinition:
    """The sensor that does this while the Dagster daemon runs."""

    @dg.sensor(
        name="run_monitoring",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reports runs as failed whose process was killed; starts no run.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        ended = fail_dead_runs(context.instance)
        named = ", ".join(run_id[:8] for run_id in ended)
        return dg.SkipReason(
            f"reported as failed, since their process was killed: {named}"
            if ended
            else "every unfinished run has its process"
        )

    return sensor
