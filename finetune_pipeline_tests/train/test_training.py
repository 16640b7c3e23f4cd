"""Training with the tiny model: resuming, and errors for faulty data, models and checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import JobCanceled, StorageError, TrainingFailed
from finetune_pipeline.records import Silent, write_jsonl
from finetune_pipeline.train import assembly, checkpoint
from finetune_pipeline.train.audit import audit
from finetune_pipeline.train.schedule import batch_at, learning_rate_at, total_steps
from finetune_pipeline.train.spec import TrainingSpec
from finetune_pipeline.train.stopping import require_convergence
from finetune_pipeline.train.tokenize import Completion, TokenizedExample
from finetune_pipeline_tests.train.architectures import tiny
from finetune_pipeline_tests.train.setup import RULES, SYSTEM, Setup, StopAfter, rows


def test_a_resumed_training_has_the_same_weights_as_an_uninterrupted_one(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    straight = Setup(tiny_model)
    straight.train(tmp_path / "a")
    stopped = Setup(tiny_model)
    with pytest.raises(JobCanceled):
        stopped.train(tmp_path / "b", StopAfter(3))
    resumed = Setup(tiny_model)
    state = resumed.train(tmp_path / "b")
    assert len(state.history) == total_steps(12, RULES) + 1
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_the_validation_loss_falls(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"num_epochs": 10.0}))
    state = setup.train(tmp_path)
    losses = [line["validation_loss"] for line in state.history if "validation_loss" in line]
    assert losses[-1] < losses[0] / 2


def test_a_damaged_checkpoint_is_logged_and_the_previous_one_is_used(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model)
    for step in (1, 2):
        setup.step(tmp_path, step)
        checkpoint.save(tmp_path, checkpoint.TrainingState(step=step), setup.weights, setup.optimizer)
    newest = tmp_path / "step-00000002" / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    logged: list[str] = []
    report = Silent()
    report.log = logged.append  # type: ignore[method-assign, assignment]
    assert checkpoint.load(tmp_path, setup.weights, setup.optimizer, report).step == 1
    assert "step-00000002 is damaged" in logged[0]


def test_a_checkpoint_folder_that_cannot_be_written_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    setup = Setup(tiny_model)
    (tmp_path / "file").write_text("not a folder", "utf-8")
    with pytest.raises(StorageError, match="cannot write"):
        checkpoint.save(tmp_path / "file", checkpoint.TrainingState(step=1), setup.weights, setup.optimizer)


def spec_of(family: str, tiny_model: Path, folder: Path, count: int, **sizes: Any) -> TrainingSpec:
    """A training of `count` rows with a model of the family and the tokenizer of the tiny model."""
    base = folder / family
    shutil.copytree(tiny_model, base)
    tiny(family, vocab_size=384, **sizes).save_pretrained(base)
    write_jsonl(folder / "rows.jsonl", rows(count))
    return TrainingSpec(
        task="colors",
        base=base,
        base_id=family,
        train=folder / "rows.jsonl",
        validation=folder / "rows.jsonl",
        system=SYSTEM,
        answer=AnswerFormat(),
        rules=RULES,
        checkpoints=folder,
        out=folder,
        params={},
        dataset_name="colors",
        dataset_digest="d1",
    )


def test_the_audit_names_the_rows_that_are_longer_than_the_context(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_of("mistral_window", tiny_model, tmp_path, count=4, max_position_embeddings=64)
    with pytest.raises(TrainingFailed, match="context of 64 tokens: 4 rows: row2, row3, row2, row3"):
        assembly.assemble(spec)


def test_a_full_disk_is_an_error_and_leaves_no_partial_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)  # the message of safetensors, verbatim
    setup = Setup(tiny_model)
    with pytest.raises(StorageError, match=r"no room left to write .*step-00000001"):
        checkpoint.save(tmp_path, checkpoint.TrainingState(step=1), setup.weights, setup.optimizer)
    assert not list(tmp_path.iterdir())


def test_a_diverging_loss_stops_the_training() -> None:
    def history(*losses: float) -> checkpoint.TrainingState:
        return checkpoint.TrainingState(step=len(losses), history=[{"loss": loss} for loss in losses])

    with pytest.raises(TrainingFailed, match="the loss diverges"):
        require_convergence(history(*[2.0] * 15, *[9.0] * 15), factor=3.0)
    require_convergence(history(*(2.0 + n % 2 for n in range(30))), factor=3.0)
    require_convergence(history(0.05, *[0.5] * 40), factor=3.0)  # an easy first batch


def test_the_audit_names_faulty_rows() -> None:
    good = TokenizedExample("good", [1, 2, 3], (Completion([7, 8, 2]), Completion([9, 2])))
    bad = [
        TokenizedExample("unsupervised", [1, 2, 3], (Completion([7, 2]), Completion([2]))),
        TokenizedExample("without_end", [1, 2, 3], (Completion([7, 8]),)),
        TokenizedExample("long", [1] * 50, (Completion([7, 2]),)),
        TokenizedExample("other", [1, 2, 3], (Completion([7, 2]),), prompt_matches=False),
    ]
    assert audit([good], frozenset({2}), 40, 2).passed
    result = audit([good, *bad], frozenset({2}), 40, 2)
    assert [check.observed for check in result.checks] == [f"1 rows: {row.id}" for row in bad]


def test_every_row_is_in_one_batch_per_epoch() -> None:
    steps = total_steps(10, RULES)
    seen = [row for step in range(steps) for row in batch_at(step, 10, RULES)]
    assert sorted(seen) == sorted([*range(10), *range(10)])
    assert seen[:10] != seen[10:], "every epoch has another order"


def test_the_learning_rate_rises_and_falls() -> None:
    rules = RULES.model_copy(update={"warmup_ratio": 0.1})
    rates = [learning_rate_at(step, 100, rules) for step in range(100)]
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.001 * rates[10]
