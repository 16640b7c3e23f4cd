"""Sharded weights on two real processes over gloo: the losses and weights of one process, saved whole and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import JobCanceled, ModelError
from finetune_pipeline.train.sharding import require_shardable
from finetune_pipeline_tests.train.setup import RULES
from finetune_pipeline_tests.train.test_distributed import (
    FIRST,
    LATER,
    CancelAtStep,
    history,
    home,
    train,
    train_alone,
    weights,
)

__all__ = ["home"]  # the fixture
FULL = RULES.model_copy(update={"method": "full", "learning_rate": 1e-3})


def compare(one: Path, two: Path, later: float = LATER) -> None:
    """Losses, divergences and validation losses of the steps; the first one to the last digit."""
    names = ("loss", "gradient_norm", "general_divergence", "validation_loss")
    first = {name: history(one)[1][name] for name in names[:3]}
    assert {name: history(two)[1][name] for name in first} == pytest.approx(first, rel=10 * FIRST, abs=1e-6)
    for name in names:
        expected = [line[name] for line in history(one) if name in line]
        assert [line[name] for line in history(two) if name in line] == pytest.approx(expected, rel=later, abs=1e-6)


def test_full_weights_in_shards_train_as_in_one_process(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    result = train(tiny_model, tmp_path / "two", rules=FULL, shard=True)
    train_alone(tiny_model, tmp_path / "one", rules=FULL)
    assert result.processes == 2 and result.validation_score is None
    compare(tmp_path / "one", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "out" / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4)


def test_an_adapter_on_a_sharded_base_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    """Canceled, continued by the same number of processes, and compared with a training that was not, bit by bit; and
    with one process."""
    rules = RULES.model_copy(update={"lora": Lora(r=4, alpha=8)})
    with pytest.raises(JobCanceled):
        train(tiny_model, tmp_path / "two", CancelAtStep(2), epochs=3, rules=rules, shard=True)
    resumed = train(tiny_model, tmp_path / "two", epochs=3, rules=rules, shard=True)
    assert 0 < resumed.resumed_at < resumed.steps
    train(tiny_model, tmp_path / "straight", epochs=3, rules=rules, shard=True)
    assert weights(tmp_path / "two") == weights(tmp_path / "straight")
    train_alone(tiny_model, tmp_path / "one", epochs=3, rules=rules)
    compare(tmp_path / "one", tmp_path / "straight", later=0.05)  # nine steps at a high learning rate


@pytest.mark.parametrize(
    ("rules", "named"),
    [
        (Train(method="qlora"), "method: qlora"),
        (Train(method="full", optimizer="adamw_8bit"), "optimizer: adamw_8bit"),
        (Train(lora=Lora(init_lora_weights="pissa")), "init_lora_weights: pissa"),
    ],
)
def test_what_cannot_be_sharded_is_refused(rules: Train, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        require_shardable(rules)
