"""A training that would not fit is checkpointed, and then computed in smaller parts; its result stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.training_memory import LIBRARIES_MB, Setting, training_memory
from finetune_pipeline.train import memory_fit
from finetune_pipeline.train.distributed import Ranks
from finetune_pipeline.train.memory_fit import fit_to_memory, largest_pass
from finetune_pipeline_tests.train.setup import RULES, LogRecorder, Setup

WIDE = RULES.model_copy(update={"batch_size": 12})


def fitted(setup: Setup, rules: Train, available_mb: float, monkeypatch: pytest.MonkeyPatch) -> tuple[Train, list[str]]:
    architecture, report = Architecture.of_folder(setup.folder), LogRecorder()
    monkeypatch.setattr(memory_fit, "reachable_mb", lambda processes=1: available_mb)
    return fit_to_memory(setup.forward, architecture, rules, setup.rows, [], report), report.lines


def need_mb(setup: Setup, rules: Train, checkpointing: bool) -> float:
    largest, _, parts = largest_pass(setup.forward, setup.rows, [], rules)
    setting = Setting("cpu", False, setup.forward.name, checkpointing, parts=parts)
    return training_memory(Architecture.of_folder(setup.folder), rules, setting, largest).total_mb


@pytest.fixture
def setup(tiny_model: Path) -> Setup:
    return Setup(tiny_model, WIDE)


def test_a_training_that_fits_is_left_as_declared(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, lines = fitted(setup, WIDE, 100_000, monkeypatch)
    assert rules == WIDE and not setup.forward.checkpointing and lines == []


def test_checkpointing_comes_first_then_smaller_parts(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, checkpointed = (need_mb(setup, WIDE, each) for each in (False, True))
    assert LIBRARIES_MB["cpu"] < checkpointed < plain
    between = (plain + checkpointed) / 2 / 0.85
    rules, lines = fitted(setup, WIDE, between, monkeypatch)
    assert setup.forward.checkpointing and rules == WIDE
    assert "gradient checkpointing is on" in lines[0]
    refused = WIDE.model_copy(update={"gradient_checkpointing": False})
    rules, lines = fitted(setup, refused, between, monkeypatch)
    assert not setup.forward.checkpointing and 64 <= rules.max_tokens_per_batch < 200
    assert "tokens at once" in lines[0]


def test_what_fits_nowhere_is_said_and_tried(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, lines = fitted(setup, WIDE, 100, monkeypatch)
    assert setup.forward.checkpointing
    assert any("may run out of memory" in line for line in lines)
    assert rules.max_tokens_per_batch == max(64, int(largest_pass(setup.forward, setup.rows, [], WIDE)[1].tokens))


def test_declared_checkpointing_is_used_or_refused(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = WIDE.model_copy(update={"gradient_checkpointing": True})
    fitted(setup, declared, 100_000, monkeypatch)
    assert setup.forward.checkpointing
    monkeypatch.setattr(type(setup.forward), "can_checkpoint", lambda self: False)
    with pytest.raises(ModelError, match="not possible"):
        fitted(setup, declared, 100_000, monkeypatch)
    fitted(setup, WIDE, 100, monkeypatch)
    assert not setup.forward.checkpointing, "auto does without"


def test_ranks_share_the_memory_of_their_machine_and_the_least_decides(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = sum(need_mb(setup, WIDE, each) for each in (False, True)) / 2 / 0.85

    class TwoMachines(Ranks):
        size, size_here = 4, 2

        def max(self, value: float) -> float:
            return max(value, -between)  # the other machine has less

    asked: list[int] = []

    def reachable(processes: int) -> float:
        asked.append(processes)
        return 100_000

    monkeypatch.setattr(memory_fit, "reachable_mb", reachable)
    architecture, report = Architecture.of_folder(setup.folder), LogRecorder()
    fit_to_memory(setup.forward, architecture, WIDE, setup.rows, [], report, TwoMachines())
    assert asked == [2]
    assert setup.forward.checkpointing


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_checkpointed_training_has_the_same_weights(tiny_model: Path, tmp_path: Path, objective: str) -> None:
    import torch

    rules = RULES.model_copy(update={"objective": objective})
    plain, other = Setup(tiny_model, rules), Setup(tiny_model, rules)
    other.forward.checkpointing = True
    before = {name: weight.detach().clone() for name, weight in plain.weights.items()}
    plain.train(tmp_path / "a")
    other.train(tmp_path / "b")
    changed: list[Any] = []
    for name, weight in plain.weights.items():
        assert torch.equal(weight, other.weights[name]), name
        changed.append(not torch.equal(weight, before[name]))
    assert any(changed)
