"""A training of two real processes over gloo: the losses of one process, resumed after a kill, canceled as a whole."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from finetune_pipeline.backends import launch
from finetune_pipeline.config import Backend
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.records import Reporter, Silent
from finetune_pipeline.train.distributed import Ranks, assignment
from finetune_pipeline_tests.train.ranks_job import STEPS, Tuned, Tuning

JOB = "finetune_pipeline_tests.train.ranks_job"
# The losses of two processes differ from those of one by the order of summation alone: of fp32 gradients, whose
# difference (1e-7 of a weight's) grows with the steps. Six steps of the tiny model: at most 5e-7 was measured.
TOLERANCE = 2e-6


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]))


def train(base: Path, folder: Path, report: Reporter | None = None, kill: int = 0, **settings: object) -> Tuned:
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    endless = settings.pop("endless", False) is True
    backend = Backend.model_validate({"kind": "torchrun", "processes_per_node": 2, **settings})
    spec = Tuning(base, out, kill, endless)
    return launch.run(JOB, spec, Tuned, folder / "job", report or Silent(), backend)


@pytest.fixture(scope="module")
def alone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_HOME", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
        return train(tiny_model, folder, kind="local", processes_per_node=1)


@pytest.fixture(scope="module")
def pair(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tuned, Path]:
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_HOME", str(folder))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]))
        return train(tiny_model, folder), folder


def test_two_processes_have_the_losses_of_one(alone: Tuned, pair: tuple[Tuned, Path]) -> None:
    two, folder = pair
    assert (alone.size, two.size) == (1, 2)
    assert two.losses == pytest.approx(alone.losses, rel=TOLERANCE)
    assert two.norms == pytest.approx(alone.norms, rel=10 * TOLERANCE)
    assert alone.losses[-1] < alone.losses[0]
    weights = [(folder / "out" / f"weights-{rank}.safetensors").read_bytes() for rank in (0, 1)]
    assert weights[0] == weights[1]


class Log(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def test_a_killed_rank_is_resumed_with_the_same_weights(
    tiny_model: Path, tmp_path: Path, pair: tuple[Tuned, Path]
) -> None:
    """By itself, from the last checkpoint, bit by bit."""
    log = Log()
    again = train(tiny_model, tmp_path, log, kill=3)
    assert (tmp_path / "out" / "killed").exists() and again.resumed_at == 3
    assert again.losses == pair[0].losses and again.sha256 == pair[0].sha256
    assert log.lines == ["a process of the job was killed; restart 1 of the job, from its last checkpoint"]


class CancelAtStep(Log):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.done = step, 0

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.done = done

    def alive(self) -> None:
        if self.done >= self.step:
            raise JobCanceled("stopped in the UI")


def test_a_canceled_training_writes_one_checkpoint_and_leaves_no_process(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(JobCanceled):
        train(tiny_model, tmp_path, CancelAtStep(STEPS + 2), endless=True)
    started = [int(path.name.removeprefix("pid-")) for path in (tmp_path / "out").glob("pid-*")]
    assert len(started) == 2 and not any(map(psutil.pid_exists, started))
    import torch

    assert torch.load(tmp_path / "out" / "state.pt", weights_only=True)["step"] >= STEPS + 2


class SecondMachine(Log):
    """Starts what the log says as the second machine, with locks of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.agent: subprocess.Popen[bytes] | None = None

    def log(self, text: str) -> None:
        super().log(text)
        if text.startswith("machine 1 of 2 waits"):
            environment = {**os.environ, "FINETUNE_HOME": str(self.folder / "home2")}
            self.agent = subprocess.Popen(text.partition("of the others: ")[2].split(), env=environment)


def test_two_machines_have_the_losses_of_one_and_resume(
    tiny_model: Path, tmp_path: Path, alone: Tuned, pair: tuple[Tuned, Path]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    log = SecondMachine(tmp_path)
    two = train(tiny_model, tmp_path, log, kill=2, nodes=2, processes_per_node=1, rendezvous=rendezvous)
    assert log.agent is not None and log.agent.wait(60) == 0
    assert two.losses == pytest.approx(alone.losses, rel=TOLERANCE)
    assert two.sha256 == pair[0].sha256  # the same sums, in the same order
    assert two.resumed_at == 2 and "a process of the job was killed; restart 1" in log.lines[-1]


def test_rows_are_shared_by_tokens_and_none_is_lost() -> None:
    tokens = [50, 3, 9, 40, 8, 2, 31, 7]
    shares = assignment(tokens, 3)
    assert sorted(index for share in shares for index in share) == list(range(8))
    assert [sum(tokens[index] for index in share) for share in shares] == [50, 50, 50]
    assert shares == assignment(tokens, 3) and all(share == sorted(share) for share in shares)
    assert assignment([5], 2) == [[0], []]


def test_one_process_is_the_trivial_case() -> None:
    ranks = Ranks()
    assert ranks.share(["a", "b"], [1, 9]) == ["a", "b"]
    assert ranks.sum([1.5, 2.0]) == [1.5, 2.0] and ranks.any(True) and not ranks.any(False)
    assert ranks.is_main and not ranks.canceled(Silent())
