"""The training loop: canceled early, resumed, with dropout, with values that are not finite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Lora
from finetune_pipeline.errors import JobCanceled, TrainingFailed
from finetune_pipeline.records import Silent
from finetune_pipeline.store import sha256_file
from finetune_pipeline.train import checkpoint, job
from finetune_pipeline.train.schedule import _order, batch_at
from finetune_pipeline.train.tokenize import TokenizedExample
from finetune_pipeline_tests.train.test_training import RULES, Setup, StopAfter


class StopsIn(Silent):
    """Cancels the run during step `n`, as SIGTERM does: the next call of `alive` raises."""

    def __init__(self, n: int) -> None:
        self.left, self.stopped = n, False

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self.stopped = done >= self.left

    def alive(self) -> None:
        if self.stopped:
            raise JobCanceled("stopped", "go on")


class LogRecorder(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def trained(setup: Setup, folder: Path, report: Any = None) -> checkpoint.TrainingState:
    """The state after a training in this folder, resumed from its checkpoint if there is one."""
    state = checkpoint.load(folder, setup.weights, setup.optimizer, report or Silent())
    setup.loop(folder, report).run(setup.rows, setup.rows[:3], state, setup.optimizer)
    return state


@pytest.mark.parametrize("report", [StopAfter(0), StopsIn(1), StopAfter(1), StopsIn(2)])
def test_a_training_canceled_early_is_resumed_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, report: Any
) -> None:
    import torch

    uninterrupted = Setup(tiny_model)
    trained(uninterrupted, tmp_path / "uninterrupted")
    with pytest.raises(JobCanceled):
        trained(Setup(tiny_model), tmp_path / "stopped", report)
    resumed = Setup(tiny_model)
    state = trained(resumed, tmp_path / "stopped")
    assert [line["step"] for line in state.history] == list(range(7))
    for name, weight in uninterrupted.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_dropout_is_the_same_in_a_resumed_training(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    rules = RULES.model_copy(update={"lora": Lora(r=4, alpha=8, dropout=0.5)})
    uninterrupted, stopped, resumed = (Setup(tiny_model, rules) for _ in range(3))
    trained(uninterrupted, tmp_path / "uninterrupted")
    with pytest.raises(JobCanceled):
        trained(stopped, tmp_path / "stopped", StopsIn(2))
    trained(resumed, tmp_path / "stopped")
    for name, weight in uninterrupted.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_a_run_canceled_before_step_1_can_be_resumed_repeatedly(tiny_model: Path, tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(JobCanceled):
            trained(Setup(tiny_model), tmp_path, StopAfter(0))
    assert trained(Setup(tiny_model), tmp_path).step == 6


def test_a_run_canceled_before_step_1_has_a_complete_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    setup, lines = Setup(tiny_model), list[str]()
    report = StopAfter(0)
    report.log = lines.append  # type: ignore[method-assign, assignment]
    with pytest.raises(JobCanceled):
        setup.loop(tmp_path, report).run(
            setup.rows, setup.rows[:3], checkpoint.TrainingState(run_id="r1"), setup.optimizer
        )
    state = checkpoint.load(tmp_path, setup.weights, setup.optimizer, report)
    assert (state.step, state.run_id) == (0, "r1") and lines == ["resuming from the checkpoint at step 0"]


def test_a_weight_without_gradient_is_resumed_without_optimizer_state(tiny_model: Path, tmp_path: Path) -> None:
    """For instance that of an expert to which no token was routed."""
    setup = Setup(tiny_model)
    unused = next(iter(setup.weights.values()))
    unused.requires_grad_(False)
    setup.loop(tmp_path)._step(setup.rows, 0, 9, setup.optimizer)
    assert unused not in setup.optimizer.state
    checkpoint.save(tmp_path, checkpoint.TrainingState(step=1), setup.weights, setup.optimizer)
    resumed = Setup(tiny_model)
    assert checkpoint.load(tmp_path, resumed.weights, resumed.optimizer, Silent()).step == 1
    assert len(resumed.optimizer.state) == len(resumed.weights) - 1


def test_resuming_in_another_precision_is_logged_and_recorded(tiny_model: Path, tmp_path: Path) -> None:
    report = LogRecorder()
    lines = report.lines
    first, state = Setup(tiny_model), checkpoint.TrainingState()
    job.note_precision(state, "bf16", report)
    with pytest.raises(JobCanceled):
        first.loop(tmp_path, StopAfter(2)).run(first.rows, first.rows[:3], state, first.optimizer)
    again = Setup(tiny_model)
    resumed = checkpoint.load(tmp_path, again.weights, again.optimizer, Silent())
    job.note_precision(resumed, "bf16", report)
    assert (lines, resumed.precisions) == ([], ["bf16"])
    job.note_precision(resumed, "fp32", report)
    assert resumed.precisions == ["bf16", "fp32"]
    assert lines == ["the checkpoint was computed in bf16; this machine continues in fp32"]


@pytest.mark.parametrize("what", ["no optimizer state", "other names", "another shape"])
def test_a_checkpoint_that_does_not_fit_is_not_restored(tiny_model: Path, tmp_path: Path, what: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    setup = Setup(tiny_model)
    setup.loop(tmp_path)._step(setup.rows, 0, 9, setup.optimizer)
    checkpoint.save(tmp_path, checkpoint.TrainingState(step=1), setup.weights, setup.optimizer)
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
    assert checkpoint.load(tmp_path, fresh.weights, fresh.optimizer, Silent()) == checkpoint.TrainingState()
    assert all(torch.equal(weight, before[name]) for name, weight in fresh.weights.items())


@pytest.mark.parametrize(("bad", "shown"), [(float("nan"), "nan"), (float("inf"), "inf")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_checkpoint(
    tiny_model: Path, tmp_path: Path, bad: float, shown: str, at: int
) -> None:
    import torch

    setup, calls = Setup(tiny_model), 0
    first = next(iter(setup.weights.values()))

    def replace(gradient: Any) -> Any:
        nonlocal calls
        calls += 1
        return torch.full_like(gradient, bad) if calls > at else gradient

    first.register_hook(replace)
    with pytest.raises(TrainingFailed, match=rf"the gradient norm is (nan|{shown}) at step {at + 1}") as failed:
        trained(setup, tmp_path)
    assert "train.learning_rate" in failed.value.hint
    assert all(bool(torch.isfinite(weight).all()) for weight in setup.weights.values())
    fresh = Setup(tiny_model)
    assert checkpoint.load(tmp_path, fresh.weights, fresh.optimizer, Silent()).step == at
    for name, weight in fresh.weights.items():
        assert torch.equal(weight, setup.weights[name]) or at == 0, name


def test_a_loss_that_is_not_finite_stops_before_the_step_is_applied(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    setup = Setup(tiny_model)
    with torch.no_grad():
        setup.model.model.norm.weight[0] = float("nan")
    before = {name: weight.detach().clone() for name, weight in setup.weights.items()}
    with pytest.raises(TrainingFailed, match="the loss is nan at step 1"):
        setup.loop(tmp_path)._step(setup.rows, 0, 9, setup.optimizer)
    assert all(torch.equal(weight, before[name]) for name, weight in setup.weights.items())


def test_dropout_is_active_in_training_and_not_in_validation(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    plain, dropout = (
        Setup(tiny_model),
        Setup(tiny_model, RULES.model_copy(update={"lora": Lora(r=4, alpha=8, dropout=0.5)})),
    )
    modes: list[tuple[bool, bool]] = []
    real = dropout.packed.forward

    def recorded(rows: Sequence[TokenizedExample], standalone: Sequence[TokenizedExample] = ()) -> Any:
        training = any(part.training for part in dropout.wrapped.modules() if isinstance(part, torch.nn.Dropout))
        modes.append((torch.is_grad_enabled(), training))
        return real(rows, standalone)

    dropout.packed.forward = recorded  # type: ignore[method-assign]
    expected = plain.loop(tmp_path / "a").validate(plain.rows)
    assert dropout.loop(tmp_path / "b").validate(dropout.rows) == pytest.approx(expected, rel=1e-6)
    logged: list[dict[str, float]] = []
    loop = dropout.loop(tmp_path / "b")
    loop.log_metrics = lambda metrics, step: logged.append(metrics)
    state = checkpoint.TrainingState()
    loop.run(dropout.rows, dropout.rows[:3], state, dropout.optimizer)
    assert set(modes) == {(False, False), (True, True)}
    assert all(part.training for part in dropout.wrapped.modules())
    assert logged[-1]["validation_loss"] == loop.validate(dropout.rows[:3])


def test_a_million_rows_are_permuted_once_per_epoch() -> None:
    """A permutation in every step would add hours to a long training."""
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
