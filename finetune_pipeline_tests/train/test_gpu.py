"""On a GPU: packed rows as the model's own pass, every method trains there, resumed and in memory that runs out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.models.gemm import gflops
from finetune_pipeline.train.forward_check import difference
from finetune_pipeline.train.method import Base, make_trainable
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline_tests.train.architectures import FAMILIES, tiny
from finetune_pipeline_tests.train.setup import RULES, Setup, StopAfter
from finetune_pipeline_tests.train.test_packing import OTHER, PAIR, PREFIX, SINGLE, TURNS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_the_models_own_pass(family: str, dtype: str) -> None:
    model = tiny(family, dtype).to("cuda")
    trainable = make_trainable(Base(model, None, frozenset({2}), torch.float32), RULES)
    rows = [SINGLE, PAIR, TURNS, OTHER]
    assert difference(model, trainable.weights, lambda: PackedForward(model, PREFIX), rows) == ""


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_every_method_learns(tiny_model: Path, tmp_path: Path, method: str, objective: str) -> None:
    rate = 1e-3 if method == "full" else 0.01
    rules = RULES.model_copy(
        update={"method": method, "objective": objective, "learning_rate": rate, "precision": "auto"}
    )
    setup = Setup(tiny_model, rules, changed=False)
    assert {weight.device.type for weight in setup.weights.values()} == {"cuda"}
    state = setup.train(tmp_path)
    assert state.step == 6 and state.skipped == 0
    assert state.history[-1]["validation_loss"] < state.history[0]["validation_loss"]


def test_a_training_is_resumed_with_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        whole = Setup(tiny_model)
        whole.train(tmp_path / "whole")
        parts = Setup(tiny_model)
        with pytest.raises(JobCanceled):
            parts.train(tmp_path / "parts", StopAfter(3))
        resumed = Setup(tiny_model)
        assert resumed.train(tmp_path / "parts").step == 6
    finally:
        torch.use_deterministic_algorithms(False)
    for name, weight in whole.weights.items():
        assert torch.allclose(resumed.weights[name], weight, rtol=0, atol=1e-6), name


def test_memory_that_runs_out_makes_smaller_parts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"batch_size": 12}))
    original, failed = setup.forward.states, []

    def states(rows: Any) -> Any:
        if len(rows) > 6:
            failed.append(len(rows))
            torch.empty(1 << 45, device="cuda")  # more than any GPU has
        return original(rows)

    monkeypatch.setattr(setup.forward, "states", states)
    line = setup.step(tmp_path)
    assert failed and line["loss"] > 0


def test_the_speed_of_the_gpu_is_measured() -> None:
    assert gflops("cuda", True) > 1000
