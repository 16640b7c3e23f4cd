"""Training by two real processes over gloo: the losses of one process, resumed after a kill, canceled as a whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune_pipeline.backends import launch
from finetune_pipeline.config import AnswerFormat, Backend, Train
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.records import Reporter, Silent, write_jsonl
from finetune_pipeline.train import job
from finetune_pipeline.train.distributed import Ranks, assignment
from finetune_pipeline.train.spec import TrainingResult, TrainingSpec
from finetune_pipeline_tests.train.ranks_job import OBJECTIVES, Losses, Trainings, full_losses, train_all
from finetune_pipeline_tests.train.setup import COLORS, RULES, SYSTEM, rows

JOB = "finetune_pipeline.train.job"
# In fp32, the losses of two processes differ from those of one by the order of summation alone. At the first step that
# is the last digit of a float (1e-7). Adam divides a gradient by its own size, so a rounding of a gradient near zero
# becomes a step of a weight, and the difference grows with the steps: 4.5e-7 was the most in six, over all objectives.
SPEED = ("tokens_per_second", "peak_share")
FIRST, LATER = 5e-7, 2e-5


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other numbers of threads add in another order


def train(
    base: Path,
    folder: Path,
    report: Reporter | None = None,
    epochs: float = 4,
    shard: bool = False,
    rules: Train = RULES,
    **settings: Any,
) -> TrainingResult:
    """The real training job, 3 steps an epoch, with a checkpoint at each."""
    backend = Backend.model_validate({"kind": "torchrun", "processes_per_node": 2, **settings})
    spec = training(base, folder, epochs, shard, rules)
    return launch.run(JOB, spec, TrainingResult, folder / "job", report or Silent(), backend)


def train_alone(base: Path, folder: Path, epochs: float = 4, rules: Train = RULES) -> TrainingResult:
    """The same in this process."""
    return job.run(training(base, folder, epochs, False, rules), Silent())


def training(base: Path, folder: Path, epochs: float, shard: bool, rules: Train) -> TrainingSpec:
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "rows.jsonl", rows(12))
    return TrainingSpec(
        task="colors",
        base=base,
        base_id="tiny",
        train=folder / "rows.jsonl",
        validation=folder / "rows.jsonl",
        system=SYSTEM,
        answer=AnswerFormat(format="label", labels=COLORS),
        rules=rules.model_copy(update={"num_epochs": epochs}),
        checkpoints=folder / "job" / "steps",
        out=out,
        params={},
        dataset_name="colors",
        dataset_digest="d1",
        shard=shard,
    )


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "out" / "history.jsonl").read_text("utf-8").splitlines()]


def weights(folder: Path) -> bytes:
    return (folder / "out" / "adapter_model.safetensors").read_bytes()


def test_two_processes_train_as_one_does(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    two = train(tiny_model, folder)
    one = train_alone(tiny_model, tmp_path / "one")
    assert (one.processes, two.processes) == (1, 2)
    first = {name: value for name, value in history(tmp_path / "one")[1].items() if name not in SPEED}
    assert {name: history(folder)[1][name] for name in first} == pytest.approx(first, rel=FIRST)
    for name in ("loss", "general_divergence", "validation_loss"):
        expected = [line[name] for line in history(tmp_path / "one") if name in line]
        assert [line[name] for line in history(folder) if name in line] == pytest.approx(expected, rel=LATER)
    assert two.validation_score == one.validation_score
    assert two.validation_loss < two.validation_loss_start / 2
    assert two.mlflow_run_id and {path.name for path in (folder / "out").iterdir()} == {
        path.name for path in (tmp_path / "one" / "out").iterdir()
    }


def test_every_objective_has_the_losses_of_one_process(tiny_model: Path, tmp_path: Path) -> None:
    backend = Backend(kind="torchrun", processes_per_node=2)
    job = "finetune_pipeline_tests.train.ranks_job"
    two = launch.run(job, Trainings(tiny_model, tmp_path), Losses, tmp_path / "job", Silent(), backend)
    one = train_all(tiny_model, tmp_path / "alone")
    for objective in OBJECTIVES:
        assert two.training[objective][0] == pytest.approx(one.training[objective][0], rel=FIRST), objective
        assert two.norms[objective][0] == pytest.approx(one.norms[objective][0], rel=10 * FIRST), objective
        assert two.training[objective] == pytest.approx(one.training[objective], rel=LATER), objective
        assert two.validation[objective] == pytest.approx(one.validation[objective], rel=LATER), objective
    assert two.checkpointed == pytest.approx(full_losses(tiny_model, tmp_path / "full"), rel=LATER)
    assert two.noticed == "the 2 processes of the training are at step 7 with different weights"


class Log(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done = 0

    def log(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.done = done if what == "training" else 0


class Second(Log):
    """Starts what the log says as the second machine, with locks of its own, and kills its rank once at a step."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__()
        self.folder, self.step = folder, step
        self.agent: subprocess.Popen[bytes] | None = None
        self.killed = False

    def log(self, text: str) -> None:
        super().log(text)
        if text.startswith("machine 1 of 2 waits"):
            environment = {**os.environ, "FINETUNE_HOME": str(self.folder / "home2")}
            self.agent = subprocess.Popen(text.partition("of the others: ")[2].split(), env=environment)

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        super().progress(what, done, total, **figures)
        if self.done >= self.step and not self.killed and self.agent is not None:
            self.killed = True
            for rank in psutil.Process(self.agent.pid).children():
                rank.kill()


def test_two_machines_resume_by_themselves_after_a_kill(tiny_model: Path, tmp_path: Path) -> None:
    """From the last checkpoint, with the weights of a training that was not killed, bit by bit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        rendezvous = f"127.0.0.1:{free.getsockname()[1]}"
    second = Second(tmp_path, step=1)
    two = train(tiny_model, tmp_path, second, epochs=20, nodes=2, processes_per_node=1, rendezvous=rendezvous)
    assert second.agent is not None and second.agent.wait(60) == 0
    assert second.killed and 0 < two.resumed_at < two.steps == 60
    assert "a process of the job was killed; restart 1 of the job, from its last checkpoint" in second.lines
    train(tiny_model, tmp_path / "straight", epochs=20)
    assert weights(tmp_path) == weights(tmp_path / "straight")


class CancelAtStep(Log):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def alive(self) -> None:
        if self.done >= self.step:
            raise JobCanceled("stopped in the UI")


def test_a_canceled_training_writes_a_checkpoint_and_leaves_no_process(tiny_model: Path, tmp_path: Path) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with pytest.raises(JobCanceled):
        train(tiny_model, tmp_path, CancelAtStep(3), epochs=50)
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before
    jobs = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(tmp_path) in " ".join(process.info["cmdline"] or [])
    ]
    assert not jobs
    newest = max((tmp_path / "job" / "steps").glob("step-*"))
    assert json.loads((newest / "state.json").read_text("utf-8"))["step"] >= 3


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
