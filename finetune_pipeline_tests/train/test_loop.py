"""The training loop: canceled early, resumed, with dropout, with values that are not finite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Lora, Validation
from finetune_pipeline.errors import JobCanceled, TrainingFailed
from finetune_pipeline.records import Silent
from finetune_pipeline.store import sha256_file
from finetune_pipeline.train import checkpoint, job
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.schedule import _order, batch_at, largest_steps, total_steps, validates_at
from finetune_pipeline.train.tokenize import TokenizedExample
from finetune_pipeline_tests.train.setup import RULES, LogRecorder, Setup, StopAfter, StopsIn


@pytest.mark.parametrize("report", [StopAfter(0), StopsIn(1), StopAfter(1), StopsIn(2)])
def test_a_training_canceled_early_is_resumed_to_the_same_weights(
    tiny_model: Path, tmp_path: Path, report: Any
) -> None:
    import torch

    uninterrupted = Setup(tiny_model)
    uninterrupted.train(tmp_path / "uninterrupted")
    with pytest.raises(JobCanceled):
        Setup(tiny_model).train(tmp_path / "stopped", report)
    resumed = Setup(tiny_model)
    state = resumed.train(tmp_path / "stopped")
    assert [line["step"] for line in state.history] == list(range(7))
    for name, weight in uninterrupted.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_dropout_is_the_same_in_a_resumed_training(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    rules = RULES.model_copy(update={"lora": Lora(r=4, alpha=8, dropout=0.5)})
    uninterrupted, stopped, resumed = (Setup(tiny_model, rules) for _ in range(3))
    uninterrupted.train(tmp_path / "uninterrupted")
    with pytest.raises(JobCanceled):
        stopped.train(tmp_path / "stopped", StopsIn(2))
    resumed.train(tmp_path / "stopped")
    for name, weight in uninterrupted.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_a_run_canceled_before_step_1_can_be_resumed_repeatedly(tiny_model: Path, tmp_path: Path) -> None:
    for _ in range(3):
        with pytest.raises(JobCanceled):
            Setup(tiny_model).train(tmp_path, StopAfter(0))
    assert Setup(tiny_model).train(tmp_path).step == 6


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
    setup.step(tmp_path)
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
    setup.step(tmp_path)
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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_whose_gradient_is_not_finite_is_skipped(tiny_model: Path, tmp_path: Path, bad: float) -> None:
    """It changes no weight, and the training goes on."""
    import torch

    setup, report, calls = Setup(tiny_model), LogRecorder(), 0
    first = next(iter(setup.weights.values()))

    def replace(gradient: Any) -> Any:
        nonlocal calls
        calls += 1
        return torch.full_like(gradient, bad) if calls == 3 else gradient

    first.register_hook(replace)
    state = setup.train(tmp_path, report)
    assert (state.step, state.skipped) == (6, 1)
    assert [line["step"] for line in state.history if "skipped" in line] == [3]
    assert report.lines[0].startswith("step 3 was skipped: the gradient norm is ")
    assert all(bool(torch.isfinite(weight).all()) for weight in setup.weights.values())


def test_steps_in_a_row_without_a_finite_loss_stop_the_training(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    setup = Setup(tiny_model)
    with torch.no_grad():
        setup.model.model.norm.weight[0] = float("nan")
    before = {name: weight.detach().clone() for name, weight in setup.weights.items()}
    with pytest.raises(
        TrainingFailed, match="the loss is nan at step 5, as in the 4 steps before; first at step 1"
    ) as e:
        setup.train(tmp_path)
    assert "train.learning_rate" in e.value.hint
    assert all(torch.equal(weight, before[name]) for name, weight in setup.weights.items())
    fresh = Setup(tiny_model)
    checkpoint.load(tmp_path, fresh.weights, fresh.optimizer, Silent())
    assert all(torch.equal(weight, before[name]) for name, weight in fresh.weights.items())


def test_out_of_memory_halves_the_parts_of_a_step_and_gives_the_same_weights(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    straight, small, report = Setup(tiny_model), Setup(tiny_model), LogRecorder()
    straight.train(tmp_path / "a")
    real, limit = small.forward.states, len(small.prefix) + 64

    def states(rows: Sequence[TokenizedExample]) -> Any:
        if torch.is_grad_enabled() and small.forward.computed_tokens(rows) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(rows)

    monkeypatch.setattr(small.forward, "states", states)
    small.train(tmp_path / "b", report)
    assert "memory ran out at step 1; now at most" in report.lines[0]
    for name, weight in straight.weights.items():
        torch.testing.assert_close(weight, small.weights[name], rtol=1e-3, atol=1e-4)


def test_a_single_row_that_does_not_fit_into_memory_is_an_error_that_names_it(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(tiny_model)

    def states(rows: Sequence[TokenizedExample]) -> Any:
        import torch

        if torch.is_grad_enabled():
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory")
        return real(rows)

    real = setup.forward.states
    monkeypatch.setattr(setup.forward, "states", states)
    with pytest.raises(
        TrainingFailed, match=r"a single row does not fit into memory: row\d+ with \d+ tokens"
    ) as failed:
        setup.train(tmp_path)
    assert "qlora" in failed.value.hint


def test_dropout_is_active_in_training_and_not_in_validation(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    plain, dropout = (
        Setup(tiny_model),
        Setup(tiny_model, RULES.model_copy(update={"lora": Lora(r=4, alpha=8, dropout=0.5)})),
    )
    modes: list[tuple[bool, bool]] = []
    real = dropout.forward.states

    def recorded(rows: Sequence[TokenizedExample]) -> Any:
        training = any(part.training for part in dropout.model.modules() if isinstance(part, torch.nn.Dropout))
        modes.append((torch.is_grad_enabled(), training))
        return real(rows)

    dropout.forward.states = recorded  # type: ignore[method-assign]
    expected = plain.loop(tmp_path / "a").validate(plain.rows, 4096)["validation_loss"]
    assert dropout.loop(tmp_path / "b").validate(dropout.rows, 4096)["validation_loss"] == pytest.approx(expected)
    dropout.train(tmp_path / "b")
    assert set(modes) == {(False, False), (True, True)}


RISING = [3.0, 2.0, 2.5, 2.6, 1.0, 0.9]


@pytest.mark.parametrize(("keep", "kept"), [("best", 2), ("last", 4)])
def test_the_best_weights_are_kept_and_a_training_without_gain_stops(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, kept: int
) -> None:
    import torch

    validation = Validation(per_epoch=3, patience=2, keep=keep)
    setup, report = Setup(tiny_model, RULES.model_copy(update={"validation": validation})), LogRecorder()
    losses, weights = iter([4.0, *RISING]), list[dict[str, Any]]()

    def validate(self: Loop, rows: Any, max_tokens: int) -> checkpoint.HistoryLine:
        weights.append({name: weight.detach().clone() for name, weight in setup.weights.items()})
        return {"validation_loss": next(losses)}

    monkeypatch.setattr(Loop, "validate", validate)
    state = setup.train(tmp_path, report)
    assert (state.step, state.best_step, state.stopped) == (4, 2, True)
    assert report.lines == ["stopped at step 4: the validation loss was lowest at step 2 (2.0000; now 2.6000)"]
    assert all(torch.equal(weight, weights[kept][name]) for name, weight in setup.weights.items())


def test_a_validation_loss_that_is_not_finite_is_never_the_best(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"validation": Validation(per_epoch=3)}))
    report, losses = LogRecorder(), iter([4.0, float("nan"), 2.0, 2.5, float("inf"), 2.6, 2.7])
    monkeypatch.setattr(Loop, "validate", lambda self, rows, max_tokens: {"validation_loss": next(losses)})
    assert setup.train(tmp_path, report).best_step == 2
    assert report.lines == ["the validation loss at step 1 is nan", "the validation loss at step 4 is inf"]


def test_a_training_whose_validation_loss_is_never_finite_stops_and_says_so(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = Validation(per_epoch=3, patience=2)
    setup, report = Setup(tiny_model, RULES.model_copy(update={"validation": validation})), LogRecorder()
    monkeypatch.setattr(Loop, "validate", lambda self, rows, max_tokens: {"validation_loss": float("nan")})
    state = setup.train(tmp_path, report)
    assert (state.step, state.best_step, state.stopped) == (2, 0, True)
    assert report.lines[-1] == "stopped at step 2: the validation loss was never finite"


def test_a_resumed_training_has_the_limits_of_this_machine(tiny_model: Path, tmp_path: Path) -> None:
    for limit, expected in ((128, 128), (4096, 1000)):
        setup = Setup(tiny_model, RULES.model_copy(update={"max_tokens_per_batch": limit}))
        state = checkpoint.TrainingState(max_tokens=1000)  # memory ran out there
        setup.loop(tmp_path / str(limit)).run(setup.rows, [], state, setup.optimizer)
        assert state.max_tokens == expected


def test_the_best_weights_survive_a_resumed_training(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    rules = RULES.model_copy(update={"validation": Validation(per_epoch=3)})
    straight, stopped, resumed = (Setup(tiny_model, rules) for _ in range(3))
    losses = iter([4.0, 3.0, 2.0, 2.5, 2.6, 2.7, 2.8] * 2)
    monkeypatch.setattr(Loop, "validate", lambda self, rows, max_tokens: {"validation_loss": next(losses)})
    assert straight.train(tmp_path / "a").best_step == 2
    with pytest.raises(JobCanceled):
        stopped.train(tmp_path / "b", StopAfter(4))
    resumed.train(tmp_path / "b")
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name
    assert not all(torch.equal(weight, stopped.weights[name]) for name, weight in straight.weights.items())


def test_an_8_bit_optimizer_is_resumed_to_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    rules = RULES.model_copy(update={"optimizer": "adamw_8bit"})
    straight, stopped, resumed = (Setup(tiny_model, rules) for _ in range(3))
    straight.train(tmp_path / "a")
    with pytest.raises(JobCanceled):
        stopped.train(tmp_path / "b", StopAfter(3))
    resumed.train(tmp_path / "b")
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_preferences_are_learned(tiny_model: Path, tmp_path: Path, objective: str) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"objective": objective, "num_epochs": 4}))
    state = setup.train(tmp_path)
    assert state.history[-1]["validation_loss"] < state.history[0]["validation_loss"]
    assert state.history[-1]["reward_accuracy"] == 1.0
    assert state.history[-1]["validation_reward_accuracy"] == 1.0


@pytest.mark.parametrize("objective", ["dpo", "kto"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_resumed_training_compares_with_the_model_before_training(
    tiny_model: Path, tmp_path: Path, objective: str, method: str
) -> None:
    """Not with the weights of the checkpoint."""
    import torch

    rules = RULES.model_copy(update={"objective": objective, "method": method})
    straight, stopped, resumed = (Setup(tiny_model, rules) for _ in range(3))
    straight.train(tmp_path / "a")
    with pytest.raises(JobCanceled):
        stopped.train(tmp_path / "b", StopAfter(3))
    resumed.train(tmp_path / "b")
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_validations_are_spread_over_an_epoch() -> None:
    rules = RULES.model_copy(update={"batch_size": 1, "num_epochs": 2.0, "validation": Validation(per_epoch=4)})
    assert [step for step in range(1, 21) if validates_at(step, 10, rules)] == [3, 5, 8, 10, 13, 15, 18, 20]
    rules = RULES.model_copy(update={"batch_size": 1, "num_epochs": 1.25})
    assert [step for step in range(1, 14) if validates_at(step, 10, rules)] == [10, 12]


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


@pytest.mark.parametrize(("epochs", "size"), [(1.0, 4), (2.5, 4), (3.0, 7), (1.0, 50)])
def test_the_largest_steps_are_those_whose_rows_have_the_most_tokens(epochs: float, size: int) -> None:
    rules = RULES.model_copy(update={"num_epochs": epochs, "batch_size": size})
    tokens = [(37 * n) % 101 for n in range(30)]
    total = total_steps(len(tokens), rules)
    sums = [sum(tokens[row] for row in batch_at(step, len(tokens), rules)) for step in range(total)]
    found = largest_steps(tokens, rules, 3)
    assert [sums[step] for step in found] == sorted(sums, reverse=True)[:3]
