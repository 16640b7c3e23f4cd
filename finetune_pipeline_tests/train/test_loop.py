"""The loop loses nothing and trains on nothing wrong: stopped early, with dropout, with numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Lora
from finetune_pipeline.errors import JobCancelled, TrainingFailed
from finetune_pipeline.records import Silent
from finetune_pipeline.store import sha256_file
from finetune_pipeline.train import checkpoint, job
from finetune_pipeline.train.schedule import _order, batch_at
from finetune_pipeline.train.tokenize import Encoded
from finetune_pipeline_tests.train.test_training import RULES, Setup, StopAfter


class StopsIn(Silent):
    """Cancelled while step `n` is being computed, as SIGTERM does it: seen at the next question."""

    def __init__(self, n: int) -> None:
        self.left, self.stopped = n, False

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.stopped = done >= self.left

    def alive(self) -> None:
        if self.stopped:
            raise JobCancelled("stopped", "go on")


class Hears(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def trained(setup: Setup, folder: Path, report: Any = None) -> checkpoint.State:
    """The state at the end of a training in this folder, from its checkpoint if there is one."""
    state = checkpoint.load(folder, setup.weights, setup.optimizer, report or Silent())
    setup.loop(folder, report).run(setup.rows, setup.rows[:3], state, setup.optimizer)
    return state


@pytest.mark.parametrize("report", [StopAfter(0), StopsIn(1), StopAfter(1), StopsIn(2)])
def test_a_training_cancelled_early_goes_on_to_the_same_weights(tiny_model: Path, tmp_path: Path, report: Any) -> None:
    import torch

    straight = Setup(tiny_model)
    trained(straight, tmp_path / "straight")
    with pytest.raises(JobCancelled):
        trained(Setup(tiny_model), tmp_path / "stopped", report)
    resumed = Setup(tiny_model)
    state = trained(resumed, tmp_path / "stopped")
    assert [line["step"] for line in state.history] == list(range(7))
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_a_training_with_dropout_drops_the_same_after_a_stop(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    rules = RULES.model_copy(update={"lora": Lora(r=4, alpha=8, dropout=0.5)})
    straight, stopped, resumed = (Setup(tiny_model, rules) for _ in range(3))
    trained(straight, tmp_path / "straight")
    with pytest.raises(JobCancelled):
        trained(stopped, tmp_path / "stopped", StopsIn(2))
    trained(resumed, tmp_path / "stopped")
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_cancelled_before_step_1_it_can_be_cancelled_and_resumed_again(tiny_model: Path, tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(JobCancelled):
            trained(Setup(tiny_model), tmp_path, StopAfter(0))
    assert trained(Setup(tiny_model), tmp_path).step == 6


def test_cancelled_before_step_1_its_checkpoint_is_whole_and_its_run_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    setup, said = Setup(tiny_model), list[str]()
    report = StopAfter(0)
    report.log = said.append  # type: ignore[method-assign, assignment]
    with pytest.raises(JobCancelled):
        setup.loop(tmp_path, report).run(setup.rows, setup.rows[:3], checkpoint.State(run_id="r1"), setup.optimizer)
    state = checkpoint.load(tmp_path, setup.weights, setup.optimizer, report)
    assert (state.step, state.run_id) == (0, "r1") and said == ["going on from the checkpoint at step 0"]


def test_a_weight_without_a_gradient_has_no_optimizer_state_and_is_resumed_so(tiny_model: Path, tmp_path: Path) -> None:
    """As an expert's that no token was sent to."""
    setup = Setup(tiny_model)
    unused = next(iter(setup.weights.values()))
    unused.requires_grad_(False)
    setup.loop(tmp_path)._step(setup.rows, 0, 9, setup.optimizer)
    assert unused not in setup.optimizer.state
    checkpoint.save(tmp_path, checkpoint.State(step=1), setup.weights, setup.optimizer)
    resumed = Setup(tiny_model)
    assert checkpoint.load(tmp_path, resumed.weights, resumed.optimizer, Silent()).step == 1
    assert len(resumed.optimizer.state) == len(resumed.weights) - 1


def test_going_on_in_another_precision_is_said_and_kept(tiny_model: Path, tmp_path: Path) -> None:
    report = Hears()
    said = report.said
    first, state = Setup(tiny_model), checkpoint.State()
    job.note_precision(state, "bf16", report)
    with pytest.raises(JobCancelled):
        first.loop(tmp_path, StopAfter(2)).run(first.rows, first.rows[:3], state, first.optimizer)
    again = Setup(tiny_model)
    resumed = checkpoint.load(tmp_path, again.weights, again.optimizer, Silent())
    job.note_precision(resumed, "bf16", report)
    assert (said, resumed.precisions) == ([], ["bf16"])
    job.note_precision(resumed, "fp32", report)
    assert resumed.precisions == ["bf16", "fp32"]
    assert said == ["the checkpoint was made in bf16; this machine goes on in fp32"]


@pytest.mark.parametrize("what", ["no optimizer state", "other names", "another shape"])
def test_a_checkpoint_that_does_not_fit_is_said_and_changes_nothing(
    tiny_model: Path, tmp_path: Path, what: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    setup = Setup(tiny_model)
    setup.loop(tmp_path)._step(setup.rows, 0, 9, setup.optimizer)
    checkpoint.save(tmp_path, checkpoint.State(step=1), setup.weights, setup.optimizer)
    file, plain = tmp_path / "step-00000001" / "tensors.safetensors", tmp_path / "step-00000001" / "state.json"
    tensors = load_file(file)
    if what == "no optimizer state":
        tensors = {name: tensors[name] for name in setup.weights}
    elif what == "other names":
        tensors = {f"other.{name}": tensor for name, tensor in tensors.items()}
    else:
        tensors |= {name: torch.zeros(2, 2) for name in setup.weights}
    save_file(tensors, file)
    plain.write_text(json.dumps(json.loads(plain.read_text()) | {"sha256": sha256_file(file)}), "utf-8")
    fresh = Setup(tiny_model)
    before = {name: weight.detach().clone() for name, weight in fresh.weights.items()}
    assert checkpoint.load(tmp_path, fresh.weights, fresh.optimizer, Silent()) == checkpoint.State()
    assert all(torch.equal(weight, before[name]) for name, weight in fresh.weights.items())


@pytest.mark.parametrize(("bad", "said"), [(float("nan"), "nan"), (float("inf"), "inf")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_gradient_that_is_no_number_reaches_neither_weights_nor_checkpoint(
    tiny_model: Path, tmp_path: Path, bad: float, said: str, at: int
) -> None:
    import torch

    setup, calls = Setup(tiny_model), 0
    first = next(iter(setup.weights.values()))

    def spoil(gradient: Any) -> Any:
        nonlocal calls
        calls += 1
        return torch.full_like(gradient, bad) if calls > at else gradient

    first.register_hook(spoil)
    with pytest.raises(TrainingFailed, match=rf"the gradient norm is (nan|{said}) at step {at + 1}") as failed:
        trained(setup, tmp_path)
    assert "train.learning_rate" in failed.value.hint
    assert all(bool(torch.isfinite(weight).all()) for weight in setup.weights.values())
    fresh = Setup(tiny_model)
    assert checkpoint.load(tmp_path, fresh.weights, fresh.optimizer, Silent()).step == at
    for name, weight in fresh.weights.items():
        assert torch.equal(weight, setup.weights[name]) or at == 0, name


def test_a_loss_that_is_no_number_is_named_before_the_step_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    setup = Setup(tiny_model)
    with torch.no_grad():
        setup.model.model.norm.weight[0] = float("nan")
    before = {name: weight.detach().clone() for name, weight in setup.weights.items()}
    with pytest.raises(TrainingFailed, match="the loss is nan at step 1"):
        setup.loop(tmp_path)._step(setup.rows, 0, 9, setup.optimizer)
    assert all(torch.equal(weight, before[name]) for name, weight in setup.weights.items())


def test_validation_has_no_dropout_and_training_has_it(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    plain, dropped = (
        Setup(tiny_model),
        Setup(tiny_model, RULES.model_copy(update={"lora": Lora(r=4, alpha=8, dropout=0.5)})),
    )
    modes: list[tuple[bool, bool]] = []
    real = dropped.packed.forward

    def seen(rows: Sequence[Encoded], apart: Sequence[Encoded] = ()) -> Any:
        training = any(part.training for part in dropped.wrapped.modules() if isinstance(part, torch.nn.Dropout))
        modes.append((torch.is_grad_enabled(), training))
        return real(rows, apart)

    dropped.packed.forward = seen  # type: ignore[method-assign]
    expected = plain.loop(tmp_path / "a").validate(plain.rows)
    assert dropped.loop(tmp_path / "b").validate(dropped.rows) == pytest.approx(expected, rel=1e-6)
    told: list[dict[str, float]] = []
    loop = dropped.loop(tmp_path / "b")
    loop.tell = lambda metrics, step: told.append(metrics)
    state = checkpoint.State()
    loop.run(dropped.rows, dropped.rows[:3], state, dropped.optimizer)
    assert set(modes) == {(False, False), (True, True)}
    assert all(part.training for part in dropped.wrapped.modules())
    assert told[-1]["validation_loss"] == loop.validate(dropped.rows[:3])


def test_a_million_rows_are_ordered_once_an_epoch() -> None:
    """Shuffled in every step, a long training takes hours longer."""
    _order.cache_clear()
    seen = {row for step in range(300) for row in batch_at(step, 10**6, RULES)}
    assert len(seen) == 300 * RULES.batch_size
    assert _order.cache_info().misses == 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = [batch_at(step, 10, RULES) for step in range(6)]
    _order.cache_clear()
    assert [batch_at(step, 10, RULES) for step in reversed(range(6))] == first[::-1]
    other = RULES.model_copy(update={"seed": -1})
    assert [batch_at(step, 10, other) for step in range(6)] != first
    assert all(type(row) is int for row in first[0])
