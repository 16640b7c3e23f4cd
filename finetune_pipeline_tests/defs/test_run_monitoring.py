"""Runs of killed processes end, those of live ones do not: real processes, a real Dagster instance."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import psutil
import pytest

from finetune_pipeline.defs import run_monitoring
from finetune_pipeline.defs.run import instance
from finetune_pipeline.defs.run_monitoring import TAG, fail_dead_runs, run_monitoring_sensor, started, tag, tag_run

# A run in a process of its own, as `finetune run` has it: it says its id when it is under way, and goes on for ever.
CHILD = """
import time, uuid
import dagster as dg
from finetune_pipeline.defs.run_monitoring import tag_run, tag
from finetune_pipeline.defs.run import instance

@dg.op
def stage_context(context):
    if {marked}:
        tag_run(context.instance, context.run_id)
    print("run", context.run_id, flush=True)
    time.sleep(600)

@dg.job
def forever():
    stage_context()

with instance() as dagster:
    run_id = str(uuid.uuid4())
    tags = {{}} if {marked} else tag(run_id)
    forever.execute_in_process(instance=dagster, run_id=run_id, tags=tags)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def child(marked: bool) -> tuple[subprocess.Popen[str], str]:
    code = CHILD.format(marked=marked)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    words = next(line.split() for line in process.stdout if line.startswith("run "))
    return process, words[1]


def test_the_run_of_a_killed_process_ends_and_that_of_a_live_one_does_not(home: Path) -> None:
    killed, first = child(marked=False)
    unreaped, second = child(marked=True)
    alive, third = child(marked=True)
    try:
        with instance() as dagster:
            assert fail_dead_runs(dagster) == []
            killed.kill()
            killed.wait()
            unreaped.kill()
            while started(unreaped.pid):  # it ended, and waits for its parent
                time.sleep(0.01)
            assert sorted(fail_dead_runs(dagster)) == sorted([first, second])
            assert fail_dead_runs(dagster) == []
            statuses = [run.status.value for id_ in (first, second, third) if (run := dagster.get_run_by_id(id_))]
            assert statuses == ["FAILURE", "FAILURE", "STARTED"]
            alive.kill()
            alive.wait()
            skip = run_monitoring_sensor().evaluate_tick(dg.build_sensor_context(instance=dagster))
            assert third[:8] in str(skip.skip_message)
    finally:
        for process in (killed, unreaped, alive):
            process.kill()
            process.wait()


@dg.op
def nothing() -> None:
    return None


@dg.job
def job() -> None:
    nothing()


GONE = "999999999"  # beyond the largest process number


@pytest.mark.parametrize(
    ("place", "value", "ends"),
    [(3, GONE, True), (4, "1", True), (1, "other-host", False), (2, "other-boot", False), (0, "00000000", False)],
)
def test_only_runs_of_this_machine_and_boot_are_checked(
    dagster: dg.DagsterInstance, place: int, value: str, ends: bool
) -> None:
    run = dagster.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    parts = tag(run.run_id)[TAG].split("|")
    parts[place] = value
    dagster.add_run_tags(run.run_id, {TAG: "|".join(parts)})
    assert fail_dead_runs(dagster) == ([run.run_id] if ends else [])


def test_a_run_that_ended_during_the_check_is_not_reported(
    dagster: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = dagster.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    dagster.add_run_tags(run.run_id, tag(run.run_id))

    def ended(pid: int) -> str:
        dagster.report_run_canceled(run)
        return ""

    monkeypatch.setattr(run_monitoring, "started", ended)
    assert fail_dead_runs(dagster) == []


@pytest.mark.parametrize("found", ["", "x", "1@2", "|||x|", "a|b|c|d|e"])
def test_other_tags_and_finished_runs_are_left_alone(dagster: dg.DagsterInstance, found: str) -> None:
    run = dagster.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags={TAG: found})
    done = dagster.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS)
    dagster.add_run_tags(done.run_id, {TAG: tag(done.run_id)[TAG].rpartition("|")[0] + "|1"})
    assert fail_dead_runs(dagster) == []
    tag_run(dagster, run.run_id)
    marked = dagster.get_run_by_id(run.run_id)
    assert marked is not None and marked.tags[TAG] == tag(run.run_id)[TAG]


def hidden(pid: int) -> OSError:
    """What /proc answers to another user for a process that runs, with `hidepid=2`."""
    return FileNotFoundError(2, "No such file or directory", f"/proc/{pid}/stat")


def refused(pid: int) -> OSError:
    """The same with `hidepid=1`."""
    return PermissionError(1, "Operation not permitted", f"/proc/{pid}/stat")


@pytest.mark.parametrize("answer", [hidden, refused])
@pytest.mark.parametrize(("signal", "ends"), [(None, False), (PermissionError, False), (ProcessLookupError, True)])
def test_a_process_that_proc_hides_is_gone_only_where_its_number_is_free(
    dagster: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[int], OSError],
    signal: type[OSError] | None,
    ends: bool,
) -> None:
    run = dagster.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    dagster.add_run_tags(run.run_id, tag(run.run_id))
    read, asked = Path.read_text, []

    def read_text(path: Path, *args: str, **options: str) -> str:
        if path == Path(f"/proc/{os.getpid()}/stat"):
            raise answer(os.getpid())
        return read(path, *args, **options)

    def kill(pid: int, number: int) -> None:
        asked.append((pid, number))
        if signal is not None:
            raise signal

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "kill", kill)
    assert fail_dead_runs(dagster) == ([run.run_id] if ends else [])
    assert asked == [(os.getpid(), 0)]


def test_a_run_without_a_start_time_is_not_reported(dagster: dg.DagsterInstance) -> None:
    run = dagster.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    dagster.add_run_tags(run.run_id, {TAG: tag(run.run_id)[TAG].rpartition("|")[0] + "|"})
    assert fail_dead_runs(dagster) == []


def test_without_proc_the_creation_time_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_monitoring, "BOOT", tmp_path / "none")
    assert str(started(os.getpid())).isdecimal()
    assert started(int(GONE)) == started(10**30) == ""

    def denied(pid: int) -> psutil.Process:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(psutil, "Process", denied)
    assert started(os.getpid()) is None and started(int(GONE)) == ""
