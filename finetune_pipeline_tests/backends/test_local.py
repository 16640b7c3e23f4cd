"""A job in a real process group: its result, its errors, cancellation and the end of its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from finetune_pipeline import errors
from finetune_pipeline.backends import local, progress, worker
from finetune_pipeline.backends.devices import lease
from finetune_pipeline.records import Silent

JOB = """
import os, signal, subprocess, sys, time
from dataclasses import dataclass
from finetune_pipeline import errors
from finetune_pipeline.backends import worker
from finetune_pipeline.backends.job_data import JobData

worker.GRACE_SECONDS = 1.5

STUBBORN = '''import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(600)'''

def wait(report):
    while True:
        report.alive()
        time.sleep(0.05)

@dataclass(frozen=True)
class Toy(JobData):
    do: str
    numbers: tuple[int, ...] = ()
    error: str = ""
    mark: str = ""

@dataclass(frozen=True)
class Seen(JobData):
    sum: int = 0
    cores: str = ""
    spins: str = ""
    mark: bool = False

def run(spec, report):
    do = spec.do
    if do == "add":
        report.log("adding")
        for done in range(1, 4):
            report.progress("sums", done, 3, loss=1.0 / done)
        return Seen(sum(spec.numbers), os.environ["OMP_NUM_THREADS"], os.environ["GOMP_SPINCOUNT"])
    if do == "refuse":
        raise getattr(errors, spec.error)("the loss is not finite", "use a lower learning rate")
    if do == "break":
        print("reading weights", flush=True)
        raise KeyError("weights")
    if do == "die":
        print("eating memory", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if do == "tear":
        with open(sys.argv[1].replace("job.json", "events.jsonl"), "a") as events:
            events.write('{"event": "progr\\n')
        return Seen(sum(spec.numbers))
    if do == "pause":
        report.log("begun")
        time.sleep(1.5)
        return Seen(sum(spec.numbers))
    if do == "leave":
        sys.exit(0)
    if do == "touch":
        open(spec.mark, "w").close()
    if do == "look":
        return Seen(mark=os.path.exists(spec.mark))
    if do == "finish":
        report.log("begun")
        try:
            wait(report)
        finally:
            end = time.process_time() + 2.5
            while time.process_time() < end:
                pass
            open(spec.mark, "w").write("ended")
    if do == "linger":  # until the next run's job has written to its own event file
        events = sys.argv[1].replace("job.json", "events.jsonl")
        first = os.stat(events).st_ino
        report.log("begun")
        try:
            wait(report)
        finally:
            end = time.process_time() + 60
            while time.process_time() < end and (
                not os.path.exists(events) or os.stat(events).st_ino == first or not os.path.getsize(events)
            ):
                sum(range(100_000))
            open(spec.mark, "w").write("ended")
    if do == "hang":
        report.log("begun")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if do == "wait":
        child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
        child.stdout.readline()
        report.log(str(child.pid))
        try:
            wait(report)
        finally:
            open(spec.mark, "w").write("ended")

if __name__ == "__main__":
    worker.main(run, Toy)
"""


class Listener(Silent):
    """Keeps the events; with `cancel`, cancels as soon as the job has logged a line."""

    def __init__(self, cancel: bool = False) -> None:
        self.lines: list[str] = []
        self.steps: list[tuple[str, int, int, dict[str, float]]] = []
        self.cancel = cancel

    def log(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.steps.append((what, done, total, figures))

    def alive(self) -> None:
        if self.cancel and self.lines:
            raise errors.JobCanceled("stopped in the UI")


@pytest.fixture(autouse=True)
def _job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_job.py").write_text(JOB, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_job", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path.cwd())]))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))


def run(folder: Path, report: Any = None, threads: int | None = None, **spec: Any) -> Any:
    toy_job = import_module("toy_job")

    return local.run("toy_job", toy_job.Toy(**spec), toy_job.Seen, folder / "job", report or Listener(), threads)


def has_ended(pid: int) -> bool:
    """Whether a process has ended (a zombie has, too) within ten seconds."""
    for _ in range(100):
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
                continue
        return True
    return False


def test_a_job_returns_its_result_and_reports_progress(tmp_path: Path) -> None:
    report = Listener()
    result = run(tmp_path, report, threads=3, do="add", numbers=(1, 2, 3))
    assert (result.sum, result.cores, result.spins) == (6, "3", "1000")
    assert report.lines == ["adding"]
    assert report.steps[0] == ("sums", 1, 3, {"loss": 1.0})
    assert report.steps[-1] == ("sums", 3, 3, {"loss": 1 / 3})  # the last is never held back


@pytest.mark.parametrize("name", ["TrainingFailed", "ModelError", "DeclarationError", "JobCanceled"])
def test_an_error_of_the_job_is_raised_with_its_class_and_hint(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.FinetuneError, match="not finite") as caught:
        run(tmp_path, do="refuse", error=name)
    assert type(caught.value) is getattr(errors, name)
    assert caught.value.hint == "use a lower learning rate"


def test_an_unexpected_exception_shows_the_end_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match="exit code 1") as caught:
        run(tmp_path, do="break")
    assert "reading weights" in caught.value.message
    assert "KeyError: 'weights'" in caught.value.message
    assert str(tmp_path / "job" / "output.log") in caught.value.hint
    assert oct((tmp_path / "job" / "output.log").stat().st_mode)[-3:] == "600"  # it may quote rows


def test_a_killed_job_names_the_signal(tmp_path: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match=r"SIGKILL \(out of memory\?\)(.|\n)*eating memory"):
        run(tmp_path, do="die")


def test_a_job_without_a_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match="no result"):
        run(tmp_path, do="leave")


def test_a_job_that_failed_on_a_full_disk_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could write neither its error nor its output: only the free space explains it."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(errors.StorageError, match="no room left to write") as caught:
        run(tmp_path, do="break")
    assert "free disk space" in caught.value.hint


def test_an_incomplete_event_is_skipped(tmp_path: Path) -> None:
    assert run(tmp_path, do="tear", numbers=(1,)).sum == 1


def test_events_of_an_earlier_job_are_not_read(tmp_path: Path) -> None:
    run(tmp_path, do="add", numbers=(1,))
    with pytest.raises(errors.TrainingFailed):
        run(tmp_path, do="die")


def test_late_events_of_the_job_of_a_killed_run_are_not_read(tmp_path: Path) -> None:
    run(tmp_path, do="add", numbers=(1,))
    stopped = {"event": "error", "type": "JobCanceled", "message": "stopped on request", "hint": "run again"}
    with (tmp_path / "job" / "events.jsonl").open("a", encoding="utf-8") as earlier:

        class Late(Listener):
            def log(self, text: str) -> None:
                super().log(text)
                earlier.write(json.dumps(stopped) + "\n")
                earlier.flush()

        assert run(tmp_path, Late(), do="pause", numbers=(1, 2)).sum == 3


def test_a_canceled_job_ends_with_all_processes_it_started(tmp_path: Path) -> None:
    report = Listener(cancel=True)
    with pytest.raises(errors.JobCanceled, match="stopped in the UI"):
        run(tmp_path, report, do="wait", mark=str(tmp_path / "mark"))
    assert (tmp_path / "mark").read_text("utf-8") == "ended"
    assert has_ended(int(report.lines[0]))  # a grandchild that ignores TERM


def test_a_canceled_job_may_finish_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not killed while it computes, however slow the machine is."""
    monkeypatch.setattr(local, "GRACE_SECONDS", 1.5)
    monkeypatch.setattr(progress, "GRACE_CPU_SECONDS", 0.01)  # on a busy machine it may get no more in that time
    with pytest.raises(errors.JobCanceled):
        run(tmp_path, Listener(cancel=True), do="finish", mark=str(tmp_path / "mark"))
    assert (tmp_path / "mark").read_text("utf-8") == "ended"


def test_an_inactive_canceled_job_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_SECONDS", 0.7)
    with pytest.raises(errors.JobCanceled):
        run(tmp_path, Listener(cancel=True), do="hang")


def start_run(folder: Path, do: str, mark: Path) -> subprocess.Popen[bytes]:
    """A run in a separate process, whose job has written its first event."""
    code = "import sys; from pathlib import Path; from finetune_pipeline.backends import local; "
    code += "from finetune_pipeline.records import SILENT; from toy_job import Seen, Toy; "
    code += "local.run('toy_job', Toy(sys.argv[2], mark=sys.argv[3]), Seen, Path(sys.argv[1]), SILENT)"
    parent = subprocess.Popen([sys.executable, "-c", code, str(folder), do, str(mark)])
    while not (folder / "events.jsonl").exists() or not (folder / "events.jsonl").read_text("utf-8"):
        assert parent.poll() is None
        time.sleep(0.05)
    return parent


def test_a_run_waits_for_the_job_of_one_that_was_killed(tmp_path: Path) -> None:
    """That job still computes, and writes into the same folder, until it checks whether it should end."""
    mark, report = tmp_path / "mark", Listener()
    parent = start_run(tmp_path / "job", "linger", mark)
    parent.send_signal(signal.SIGKILL)
    assert run(tmp_path, report, do="look", mark=str(mark)).mark
    assert report.lines == [worker.FOLDER_IN_USE]
    parent.wait()


def test_a_job_that_waits_for_another_can_be_canceled(tmp_path: Path) -> None:
    with lease(1, "another.job", Silent()), pytest.raises(errors.JobCanceled, match="stopped in the UI"):
        run(tmp_path, Listener(cancel=True), do="add", numbers=(1,))
    assert '"JobCanceled"' in (tmp_path / "job" / "events.jsonl").read_text("utf-8")  # the job itself wrote it


def test_a_job_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    folder, mark = tmp_path / "job", tmp_path / "mark"
    parent = start_run(folder, "wait", mark)
    (job,) = psutil.Process(parent.pid).children()
    stubborn = [child.pid for child in job.children()]
    try:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert has_ended(job.pid)
        assert mark.read_text("utf-8") == "ended"
    finally:
        for pid in stubborn:  # they ignore TERM, and their parents have ended
            os.kill(pid, signal.SIGKILL)


def test_a_job_that_hangs_after_its_parent_was_killed_is_killed_too(tmp_path: Path) -> None:
    parent = start_run(tmp_path, "hang", tmp_path / "mark")
    (job,) = psutil.Process(parent.pid).children()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert has_ended(job.pid)


def test_a_job_whose_parent_ended_first_writes_nothing(tmp_path: Path) -> None:
    description, mark = tmp_path / "job.json", tmp_path / "mark"
    description.write_text(json.dumps({"do": "finish", "mark": str(mark)}), "utf-8")
    code = "import os, subprocess, sys; "
    code += "job = [sys.executable, '-m', 'toy_job', sys.argv[1], str(os.getpid())]; "
    code += "print(subprocess.Popen(job, stdout=subprocess.DEVNULL).pid)"
    job = int(subprocess.check_output([sys.executable, "-c", code, str(description)]))
    try:
        assert has_ended(job)
        assert not mark.exists() and not (tmp_path / "events.jsonl").exists()
    finally:
        with suppress(ProcessLookupError):
            os.kill(job, signal.SIGKILL)


def test_a_job_that_is_terminated_while_it_waits_does_not_start(tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "job"
    with lease(1, "another.job", Silent()):
        parent = start_run(folder, "touch", mark)
        (job,) = psutil.Process(parent.pid).children()
        os.kill(job.pid, signal.SIGSTOP)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    os.kill(job.pid, signal.SIGTERM)
    os.kill(job.pid, signal.SIGCONT)
    assert has_ended(job.pid)
    assert not mark.exists()
