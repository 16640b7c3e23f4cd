"""Sharded weights on two real processes over gloo: the losses and weights of one process, saved whole and resumed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune_pipeline.backends import launch
from finetune_pipeline.config import Backend
from finetune_pipeline.records import Silent
from finetune_pipeline_tests.train.sharded_job import Sharded, Sharding

JOB = "finetune_pipeline_tests.train.sharded_job"
TOLERANCE = 2e-6  # fp32: two processes add in another order than one
BF16 = 5e-3  # the base in bf16, of which a rank computes other rows


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]))


def train(base: Path, out: Path, processes: int, method: str = "full", resume: bool = False) -> Sharded:
    out.mkdir(exist_ok=True)
    backend = Backend(kind="torchrun" if processes > 1 else "local", processes_per_node=processes)
    return launch.run(JOB, Sharding(base, out, method, resume), Sharded, out / "job", Silent(), backend)


def test_full_weights_are_sharded_saved_whole_and_resumed(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    one, two = train(tiny_model, tmp_path / "one", 1), train(tiny_model, tmp_path / "two", 2)
    assert two.losses == pytest.approx(one.losses, rel=TOLERANCE)
    assert two.norms == pytest.approx(one.norms, rel=1e-5)
    assert two.hidden == pytest.approx(one.hidden, rel=1e-4)
    assert one.held == 1.0 and two.held == pytest.approx(0.5, abs=0.01)
    whole, gathered = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert whole.keys() == gathered.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(gathered[name], weight, rtol=0, atol=1e-4)
    resumed = train(tiny_model, tmp_path / "two", 2, resume=True)
    assert resumed.losses == two.losses[2:] and resumed.sha256 == two.sha256
    alone = train(tiny_model, tmp_path / "two", 1, resume=True)  # on another number of processes
    assert alone.losses == pytest.approx(two.losses[2:], rel=TOLERANCE)


def test_an_adapter_on_a_sharded_base(tiny_model: Path, tmp_path: Path) -> None:
    """The frozen base in bf16, the adapter in fp32, in one group of weights."""
    one = train(tiny_model, tmp_path / "one", 1, "lora")
    two = train(tiny_model, tmp_path / "two", 2, "lora")
    assert two.losses == pytest.approx(one.losses, rel=BF16)
    assert two.held == pytest.approx(0.5, abs=0.01)
