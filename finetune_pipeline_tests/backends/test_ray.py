"""Jobs on a real Ray cluster of two local nodes: result, errors, a killed rank, cancellation."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune_pipeline import errors
from finetune_pipeline.backends import ray
from finetune_pipeline.backends.job_files import JobFiles
from finetune_pipeline.backends.node import Launch
from finetune_pipeline.config import Backend
from finetune_pipeline_tests.backends.test_torchrun import RESTARTED, Listener, left, wait_for
from finetune_pipeline_tests.backends.test_torchrun import run as run_torchrun
from finetune_pipeline_tests.train.test_distributed import FIRST, LATER, history, train

pytest.importorskip("ray.job_submission", reason="the extra `ray` is not installed")
pytest.importorskip("aiohttp_cors", reason="ray[default], which serves jobs, is not installed")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of a cluster of two nodes with two processors each, on loopback: Ray replaces 127.0.0.1 by the
    address of the machine."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("FINETUNE_HOME", str(tmp_path_factory.mktemp("ray_home")))
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": port}
        cluster = Cluster(initialize_head=True, head_node_args={**head, "node_ip_address": "127.0.0.2"})
        try:
            cluster.add_node(num_cpus=2, node_ip_address="127.0.0.3")
            cluster.wait_for_nodes()
            yield f"http://127.0.0.1:{port}"
        finally:
            cluster.shutdown()


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    folder = tmp_path / "mark"
    folder.mkdir()
    return folder


def run(address: str, mark: Path, do: str, report: Any = None, **settings: Any) -> Any:
    cluster = {"address": address, "python": sys.executable}
    chosen: dict[str, Any] = {"kind": "ray", "device": "cpu", "ray": cluster, **settings}
    return run_torchrun(mark, do, report or Listener(), **chosen)


def test_one_machine_runs_several_ranks(address: str, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It records its run where this process looks for it: the cluster was started with another home folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("FINETUNE_HOME", str(mark.parent / "home"))
    report = Listener()
    result = run(address, mark, "report", report)
    assert (result.rank, result.size, result.devices) == (0, 2, "")
    assert result.mlflow == f"sqlite:///{mark.parent}/home/mlflow.db"
    assert report.lines[0].startswith("submitted the Ray job finetune-") and report.lines[1:] == ["rank 0 of 2"]
    assert not left(mark)


def test_two_machines_restart_together_after_a_rank_was_killed(address: str, mark: Path) -> None:
    report = Listener()
    result = run(address, mark, "die", report, nodes=2, processes_per_node=1)
    assert (result.rank, result.size) == (0, 2)
    assert report.lines[-2:] == [RESTARTED, "rank 0 of 2"]
    assert not left(mark)


def test_the_error_of_a_rank_reaches_the_caller(address: str, mark: Path) -> None:
    with pytest.raises(errors.ModelError, match="layer 3") as caught:
        run(address, mark, "refuse", nodes=2, processes_per_node=1)
    assert caught.value.hint == "choose another base model"
    assert not left(mark)


def test_a_cancellation_ends_the_job_on_both_machines(address: str, mark: Path) -> None:
    with pytest.raises(errors.JobCanceled):
        run(
            address,
            mark,
            "wait",
            Listener(mark / "waiting-0", mark / "waiting-1"),
            nodes=2,
            processes_per_node=1,
        )
    assert (mark / "checkpoint-0").exists() and (mark / "checkpoint-1").exists()
    assert not left(mark)


class Loses(Listener):
    """Kills the machine's part of the job, once, when its first rank has begun."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = str(folder)

    def log(self, text: str) -> None:
        super().log(text)
        if text.startswith("rank 0") and len([line for line in self.lines if line.startswith("rank 0")]) == 1:
            for process in psutil.process_iter(["cmdline"]):
                command = process.info["cmdline"] or []
                if "finetune_pipeline.backends.node" in command and self.folder in " ".join(command):
                    process.kill()


def test_a_job_whose_machine_was_lost_is_submitted_again(address: str, mark: Path) -> None:
    report = Loses(mark.parent)
    assert run(address, mark, "pause", report).size == 2
    assert "a machine of the job was lost; restart 1 of the job, from its last checkpoint" in report.lines
    assert not left(mark)


def test_the_job_of_a_killed_run_is_stopped_first(address: str, mark: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from finetune_pipeline_tests.backends.test_ray import run; "
        "run(sys.argv[1], Path(sys.argv[2]), 'wait')"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, address, str(mark)])
    wait_for(mark / "waiting-0", mark / "waiting-1")
    parent.kill()
    parent.wait()
    report = Listener()
    assert run(address, mark, "report", report).size == 2
    assert report.lines[0].startswith("stopping the Ray job finetune-")
    assert not left(mark)


def test_a_training_on_two_machines_has_the_losses_of_one_process(
    address: str, tiny_model: Path, tmp_path: Path
) -> None:
    cluster = {"address": address, "python": sys.executable}
    two = train(tiny_model, tmp_path / "two", kind="ray", nodes=2, processes_per_node=1, device="cpu", ray=cluster)
    one = train(tiny_model, tmp_path / "one", kind="local", processes_per_node=1)
    assert (one.processes, two.processes) == (1, 2)
    losses = [[line["loss"] for line in history(tmp_path / name) if "loss" in line] for name in ("one", "two")]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=FIRST)
    assert losses[1] == pytest.approx(losses[0], rel=LATER)


def test_a_cluster_that_does_not_answer_is_named() -> None:
    with pytest.raises(errors.TrainingFailed, match=r"cluster at http://127\.0\.0\.1:9 did not answer") as caught:
        ray._client("http://bob:S3cret@127.0.0.1:9")
    assert "ray.address" in caught.value.hint and "S3cret" not in caught.value.message


def test_settings_that_ray_does_not_take_are_an_error_with_a_hint(address: str, mark: Path) -> None:
    wrong = {"address": address, "python": sys.executable, "runtime_env": {"working_dir": "/nowhere"}}
    with pytest.raises(errors.TrainingFailed, match=r"did not take the job: .*/nowhere") as caught:
        run(address, mark, "report", ray=wrong)
    assert "ray.address" in caught.value.hint


class Away:
    """A cluster whose dashboard is gone once it has taken a job."""

    def __init__(self, takes: bool = True) -> None:
        self.takes = takes

    def submit_job(self, **job: Any) -> None:
        if not self.takes:
            self.list_jobs()

    def list_jobs(self) -> list[Any]:
        raise RuntimeError("Request failed with status code 500: http://bob:S3cret@127.0.0.1:9")

    def get_job_status(self, identifier: str) -> Any:
        return self.list_jobs()

    def get_job_info(self, identifier: str) -> Any:
        return self.list_jobs()


def job_of(client: Any, folder: Path, report: Listener) -> ray.RayJob:
    backend = Backend.model_validate({"kind": "ray", "ray": {"address": "http://bob:S3cret@127.0.0.1:9"}})
    launch = Launch("a.job", "id1", 1, 1, 0, None, None, "cpu", False)
    (folder / "job.json").touch()
    return ray.RayJob(JobFiles(folder), launch, backend, report, client, {})


def test_an_error_of_the_cluster_at_the_start_is_named(tmp_path: Path) -> None:
    for step in ("stop_earlier", "submit"):
        with pytest.raises(errors.TrainingFailed, match="status code 500") as caught:
            getattr(job_of(Away(takes=False), tmp_path, Listener()), step)()
        assert "S3cret" not in str(caught.value)


def test_a_cluster_that_is_away_does_not_hide_why_a_job_ends(tmp_path: Path) -> None:
    """Its errors are logged: another error, or a cancellation, is on its way to the caller."""
    report = Listener()
    job = job_of(Away(), tmp_path, report)
    job.submit()
    (tmp_path / "ending").touch()
    job._answered -= 2 * ray.AWAY_SECONDS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "ENDING_SECONDS", 0.1)
        job.end()
    job._keep_message()
    assert report.lines[1].endswith("to stop it: ray job stop finetune-id1-0")
    assert "did not tell why the job failed" in report.lines[2]
    assert (tmp_path / "cancel").exists() and "S3cret" not in " ".join(report.lines)
