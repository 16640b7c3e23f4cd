"""Checkpoints on a disk that fails: damaged and unreadable files, the best weights, what a killed process left."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest

from finetune_pipeline.config import Validation
from finetune_pipeline.errors import JobCanceled, StorageError, TrainingFailed
from finetune_pipeline.records import Silent
from finetune_pipeline.train import best_weights, checkpoint
from finetune_pipeline.train.distributed import Ranks
from finetune_pipeline_tests.train.setup import RULES, LogRecorder, Setup, StopAfter

BEST = RULES.model_copy(update={"validation": Validation(per_epoch=3)})  # after every step; each is better here


def stopped(folder: Path, tiny_model: Path) -> Setup:
    """A training that was canceled after four of its six steps."""
    setup = Setup(tiny_model, BEST)
    with pytest.raises(JobCanceled):
        setup.train(folder, StopAfter(4))
    return setup


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_checkpoint_whose_best_weights_are_damaged_is_not_resumed(
    tiny_model: Path, tmp_path: Path, damage: str
) -> None:
    import torch

    straight, resumed, report = Setup(tiny_model, BEST), Setup(tiny_model, BEST), LogRecorder()
    straight.train(tmp_path / "a")
    stopped(tmp_path / "b", tiny_model)
    kept = [f"{what}-0000000{step}" for step in (3, 4) for what in ("step", "best")]
    assert names(tmp_path / "b") == {name + ".safetensors" * name.startswith("best") for name in kept}
    newest = best_weights.path(tmp_path / "b", 4)
    newest.write_bytes(newest.read_bytes()[:1000]) if damage == "cut" else newest.unlink()
    resumed.train(tmp_path / "b", report)
    assert report.lines[0].startswith("the checkpoint step-00000004 is damaged")
    assert report.lines[1] == "resuming from the checkpoint at step 3"
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_best_weights_that_are_gone_at_the_end_are_an_error_with_a_cure(tiny_model: Path, tmp_path: Path) -> None:
    setup = stopped(tmp_path, tiny_model)
    best_weights.path(tmp_path, 4).write_bytes(b"half")
    with pytest.raises(TrainingFailed, match=r"best-00000004.safetensors, cannot be read") as failed:
        best_weights.restore(tmp_path, 4, setup.weights)
    assert "from the last checkpoint whose files are intact" in failed.value.hint


def test_a_checkpoint_that_cannot_be_read_is_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system that is away for a moment must not cost the training."""
    setup = stopped(tmp_path, tiny_model)
    before = names(tmp_path)

    def away(path: Path) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(checkpoint, "sha256_file", away)
    with pytest.raises(StorageError, match=r"step-00000004 cannot be read: .*Stale file handle"):
        checkpoint.load(tmp_path, setup.weights, setup.optimizer, Silent())
    assert names(tmp_path) == before


class Second(Ranks):
    rank, size = 1, 2


def test_the_first_rank_alone_deletes_what_is_damaged(tiny_model: Path, tmp_path: Path) -> None:
    setup = stopped(tmp_path, tiny_model)
    (tmp_path / "step-00000004" / "state.json").write_text("{", "utf-8")
    (tmp_path / ".step-00000005.123").mkdir()
    (tmp_path / ".best-00000005.safetensors.123").write_bytes(b"half")
    before = names(tmp_path)
    assert checkpoint.load(tmp_path, setup.weights, setup.optimizer, Silent(), None, Second()).step == 3
    assert names(tmp_path) == before
    assert checkpoint.load(tmp_path, setup.weights, setup.optimizer, Silent()).step == 3
    left = ("step-00000004", ".step-00000005.123", ".best-00000005.safetensors.123")
    assert names(tmp_path) == before - set(left)


def test_checkpoints_that_take_long_are_further_apart(tiny_model: Path, tmp_path: Path) -> None:
    loop = Setup(tiny_model, RULES.model_copy(update={"checkpoint_seconds": 30.0})).loop(tmp_path)
    loop._saved = time.monotonic() - 3600
    for took, due in ((0.0, True), (179.0, True), (181.0, False)):
        loop._save_seconds = took
        assert loop._checkpoint_due() is due
    loop.rules = RULES
    assert loop._checkpoint_due(), "0: every step"
