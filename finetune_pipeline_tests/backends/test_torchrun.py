"""A job of several real processes under torch's elastic agent: on one machine, and on two agents over loopback."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from finetune_pipeline import errors
from finetune_pipeline.backends import launch, node, torchrun
from finetune_pipeline.backends.devices import lease
from finetune_pipeline.backends.job_files import untouched
from finetune_pipeline.config import Backend
from finetune_pipeline.records import Reporter, Silent
from finetune_pipeline_tests.backends.ranks_job import Ranks, Seen

JOB = "finetune_pipeline_tests.backends.ranks_job"
RESTARTED = "a process of the job was killed; restart 1 of the job, from its last checkpoint"
LIMIT = 120.0  # seconds, of a machine under load


class Listener(Silent):
    """Keeps what is logged; cancels once every file of `until` exists."""

    def __init__(self, *until: Path) -> None:
        self.lines: list[str] = []
        self.until = until

    def log(self, text: str) -> None:
        self.lines.append(text)

    def alive(self) -> None:
        if self.until and all(path.exists() for path in self.until):
            raise errors.JobCanceled("stopped in the UI")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    folder = tmp_path / "mark"
    folder.mkdir()
    return folder


def run(mark: Path, do: str, report: Reporter | None = None, rank: int = 1, **settings: object) -> Seen:
    backend = Backend.model_validate({"kind": "torchrun", "processes_per_node": 2, **settings})
    return launch.run(JOB, Ranks(do, mark, rank), Seen, mark.parent / "job", report or Listener(), backend)


def left(mark: Path) -> list[psutil.Process]:
    """The processes of the job that still exist a moment after its end."""
    started = [int(path.name.removeprefix("pid-")) for path in mark.glob("pid-*")]
    assert started
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=5)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def wait_for(*paths: Path) -> None:
    end = time.monotonic() + LIMIT
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, paths
        time.sleep(0.05)


def test_rank_0_writes_the_events_and_the_result(mark: Path) -> None:
    report = Listener()
    result = run(mark, "report", report)
    assert (result.rank, result.size, result.local_rank) == (0, 2, "0")
    assert report.lines == ["rank 0 of 2"]
    assert not left(mark)


def test_the_error_of_any_rank_is_raised_once_with_its_hint(mark: Path) -> None:
    """The agent would start the job again, in which nothing has changed."""
    report = Listener()
    with pytest.raises(errors.ModelError, match="layer 3") as caught:
        run(mark, "refuse", report)
    assert caught.value.hint == "choose another base model"
    assert report.lines == ["rank 0 of 2"]
    assert not left(mark)


def test_a_killed_rank_starts_the_job_again_and_the_log_says_so(mark: Path) -> None:
    report = Listener()
    assert run(mark, "die", report).size == 2
    assert report.lines[-2:] == [RESTARTED, "rank 0 of 2"]
    assert not left(mark)


def test_an_unexpected_exception_shows_the_end_of_the_output_and_is_not_repeated(mark: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match="KeyError: 'weights'"):
        run(mark, "break")
    assert [path.read_text("utf-8") for path in mark.glob("pid-*")].count("1") == 1
    assert not left(mark)


def test_after_the_last_restart_the_signal_is_named(mark: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match=r"rank 1 ended with SIGKILL \(out of memory\?\)"):
        run(mark, "die", max_restarts=0)
    assert not left(mark)


def test_a_canceled_job_ends_with_every_process(mark: Path) -> None:
    """Also one that ignores SIGTERM, in a session of its own."""
    with pytest.raises(errors.JobCanceled, match="stopped in the UI"):
        run(mark, "wait", Listener(mark / "waiting-0", mark / "waiting-1"))
    assert (mark / "checkpoint-0").exists() and (mark / "checkpoint-1").exists()
    assert not left(mark)


def test_an_inactive_canceled_job_is_killed(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "GRACE_SECONDS", 1.0)
    with pytest.raises(errors.JobCanceled):
        run(mark, "hang", Listener(mark / "waiting-0", mark / "waiting-1"))
    assert not left(mark)


def start_run(mark: Path, do: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own, whose job's ranks all wait."""
    code = (
        "import sys; from pathlib import Path; from finetune_pipeline.backends import launch; "
        "from finetune_pipeline.config import Backend; from finetune_pipeline.records import SILENT; "
        "from finetune_pipeline_tests.backends.ranks_job import Ranks, Seen; mark = Path(sys.argv[1]); "
        f"launch.run('{JOB}', Ranks(sys.argv[2], mark), Seen, mark.parent / 'job', SILENT, "
        "Backend(kind='torchrun', processes_per_node=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(mark), do])
    wait_for(mark / "waiting-0", mark / "waiting-1")
    return parent


def test_a_job_ends_at_a_checkpoint_when_its_parent_is_killed(mark: Path) -> None:
    parent = start_run(mark, "wait")
    agent = psutil.Process(parent.pid).children()[0]
    ranks = agent.children()
    assert len(ranks) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs([agent, *ranks], timeout=LIMIT)
    assert not alive
    assert (mark / "checkpoint-0").exists() and (mark / "checkpoint-1").exists()
    for path in mark.glob("pid-*"):  # the children of the ranks ignore SIGTERM, and their parents have ended
        if not path.read_text("utf-8") and psutil.pid_exists(pid := int(path.name[4:])):
            os.kill(pid, signal.SIGKILL)


def test_a_job_ends_when_its_agent_is_killed(mark: Path) -> None:
    parent = start_run(mark, "wait")
    agent = psutil.Process(parent.pid).children()[0]
    time.sleep(2 * torchrun.SEEN_SECONDS)  # then the parent knows the processes that the ranks started
    agent.kill()
    assert parent.wait(LIMIT) != 0  # TrainingFailed
    assert not left(mark)


def test_a_job_that_waits_for_devices_can_be_canceled_at_once(mark: Path) -> None:
    class Impatient(Listener):
        def alive(self) -> None:
            if self.lines:
                raise errors.JobCanceled("stopped in the UI")

    report = Impatient()
    with lease(1, "another.job", Silent()), pytest.raises(errors.JobCanceled):
        run(mark, "report", report)
    assert report.lines[0].startswith("waiting for the processor of this machine: cpu is used by another.job")
    assert not list(mark.iterdir())


@pytest.fixture
def rendezvous() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    yield f"127.0.0.1:{port}"


OTHER_NAME = "import platform\nplatform.node = lambda: 'machine-2'\n"


class SecondMachine(Listener):
    """Starts what the log says as the second machine, which has another name and the same home folder. It must not wait
    for locks of the first."""

    def __init__(self, folder: Path, *until: Path) -> None:
        super().__init__(*until)
        self.folder = folder
        self.agent: subprocess.Popen[bytes] | None = None

    def log(self, text: str) -> None:
        super().log(text)
        if text.startswith("machine 1 of 2 waits"):
            self.start(text.partition("of the others: ")[2].split())

    def start(self, command: list[str]) -> None:
        (self.folder / "sitecustomize.py").write_text(OTHER_NAME, "utf-8")
        path = os.pathsep.join([str(self.folder), os.environ["PYTHONPATH"]])
        self.agent = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})

    def alive(self) -> None:
        super().alive()
        for output in self.folder.glob("job/launch-*/output-*.log"):
            assert "waiting for" not in output.read_text("utf-8")


def test_two_machines_find_each_other_at_the_rendezvous(mark: Path, rendezvous: str) -> None:
    report = SecondMachine(mark.parent)
    result = run(mark, "report", report, nodes=2, processes_per_node=1, rendezvous=rendezvous)
    assert (result.rank, result.size) == (0, 2)
    assert report.agent is not None and report.agent.wait(LIMIT) == 0
    assert not left(mark)


def test_a_rank_killed_on_the_second_machine_starts_the_job_again_on_both(mark: Path, rendezvous: str) -> None:
    report = SecondMachine(mark.parent)
    assert run(mark, "die", report, nodes=2, processes_per_node=1, rendezvous=rendezvous).size == 2
    assert report.lines[-2:] == [RESTARTED, "rank 0 of 2"]
    assert report.agent is not None and report.agent.wait(LIMIT) == 0
    assert not left(mark)


def test_a_cancellation_reaches_the_second_machine(mark: Path, rendezvous: str) -> None:
    report = SecondMachine(mark.parent, mark / "waiting-0", mark / "waiting-1")
    with pytest.raises(errors.JobCanceled):
        run(mark, "wait", report, nodes=2, processes_per_node=1, rendezvous=rendezvous)
    wait_for(mark / "checkpoint-0", mark / "checkpoint-1")
    assert report.agent is not None
    report.agent.wait(LIMIT)
    assert not left(mark)


class Dies(SecondMachine):
    """Starts the second machine once the first listens at the rendezvous, kills it once its rank has begun, and cancels
    once the log names it."""

    def __init__(self, folder: Path, rendezvous: str, *until: Path) -> None:
        super().__init__(folder, *until)
        self.port = int(rendezvous.rpartition(":")[2])
        self.command: list[str] = []

    def start(self, command: list[str]) -> None:
        self.command = command

    def alive(self) -> None:
        if any("gives no sign" in line for line in self.lines):
            raise errors.JobCanceled("stopped in the UI")
        with socket.socket() as client:
            if self.agent is None and client.connect_ex(("127.0.0.1", self.port)) == 0:
                super().start(self.command)
        if self.agent and self.agent.poll() is None and all(path.exists() for path in self.until):
            agent = psutil.Process(self.agent.pid)
            for process in [*agent.children(recursive=True), agent]:
                process.kill()
            self.agent.wait()


def test_a_machine_that_is_lost_is_named(mark: Path, rendezvous: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "SILENT_SECONDS", 5.0)
    report = Dies(mark.parent, rendezvous, mark / "waiting-0", mark / "waiting-1")
    with pytest.raises(errors.JobCanceled):
        run(mark, "wait", report, nodes=2, processes_per_node=1, rendezvous=rendezvous)
    (line,) = [line for line in report.lines if "gives no sign" in line]
    assert f"the machine {socket.gethostname()} gives no sign; start on it or on another: " in line
    assert report.lines[0].endswith(line.partition("on another: ")[2])
    assert not left(mark)


def test_a_sign_of_life_that_stops_is_noticed(mark: Path) -> None:
    silent = untouched(mark / "alive", 0.2)
    (mark / "alive").touch()
    assert not silent()
    time.sleep(0.3)
    assert silent()
    os.utime(mark / "alive", (1, 1))
    assert not silent()


def test_a_node_ends_itself_also_as_the_first_process_of_a_container(tmp_path: Path) -> None:
    """The kernel does not deliver SIGKILL to that one, as here to none."""
    code = (
        "import os, sys; from pathlib import Path; from finetune_pipeline.backends import node; "
        "from finetune_pipeline.backends.job_files import JobFiles; os.kill = lambda pid, number: None; "
        "node.END_SECONDS = 0.1; node._Watch(JobFiles(Path(sys.argv[1])), None, True).run()"
    )
    (tmp_path / "cancel").touch()
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=LIMIT, check=False).returncode == 1


def test_the_options_of_torchrun(tmp_path: Path) -> None:
    described = {"module": "a.job", "id": "7", "nodes": 2, "processes_per_node": 4, "max_restarts": 3, "threads": None}
    several = node.Launch.from_json({**described, "rendezvous": "gpu1:29400", "device": "auto", "leases": True})
    options = node.rendezvous(several, tmp_path)
    assert {"--nnodes=2", "--nproc-per-node=4", "--max-restarts=3", "--rdzv-endpoint=gpu1:29400"} <= set(options)
    assert not any(option.startswith("--local-addr") for option in options)
    alone = node.Launch.from_json({**several.to_json(), "nodes": 1, "rendezvous": None})
    options = node.rendezvous(alone, tmp_path)
    assert f"--rdzv-endpoint={tmp_path}/rendezvous" in options and "--local-addr=127.0.0.1" in options


def test_an_error_before_the_other_rank_has_begun_ends_the_job_at_once(
    mark: Path, rendezvous: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine would otherwise count it as finished, and wait for the rank that the other machine starts again."""
    monkeypatch.setenv("SLOW_RANK", "0")
    report = SecondMachine(mark.parent)
    with pytest.raises(errors.ModelError, match="layer 3"):
        run(mark, "refuse early", report, nodes=2, processes_per_node=1, rendezvous=rendezvous)
    assert report.agent is not None and report.agent.wait(LIMIT) == 0
    assert not left(mark)


def test_a_machine_that_gives_up_ends_the_job_on_the_other(mark: Path, rendezvous: str) -> None:
    report = SecondMachine(mark.parent)
    with pytest.raises(errors.TrainingFailed, match="rank 1 ended with SIGKILL"):
        run(mark, "dies", report, nodes=2, processes_per_node=1, rendezvous=rendezvous, max_restarts=1)
    assert report.agent is not None and report.agent.wait(LIMIT) != 0
    assert not left(mark)
