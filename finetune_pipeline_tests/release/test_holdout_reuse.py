"""Holdout reuse: which decisions count as made on the same test set."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.config import Release
from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import Decision
from finetune_pipeline.release.holdout_reuse import (
    HoldoutReuse,
    HoldoutUse,
    count_reuse,
    record_use,
    recorded_uses,
    rules_hash,
)
from finetune_pipeline_tests.artifacts import task_store

IDS = frozenset(f"r{i}" for i in range(10))


def test_each_adapter_counts_once() -> None:
    now = HoldoutUse("c", "rules", IDS)
    past = [HoldoutUse("a", "rules", IDS), HoldoutUse("b", "rules", IDS), HoldoutUse("b", "rules", IDS)]
    assert count_reuse([], now) == HoldoutReuse(1, 1)
    assert count_reuse(past, now) == HoldoutReuse(3, 1)
    assert count_reuse([*past, now], now) == HoldoutReuse(3, 1)  # the same decision again does not count


def test_other_rules_for_the_same_adapter_count() -> None:
    now = HoldoutUse("a", "looser", IDS)
    assert count_reuse([HoldoutUse("a", "strict", IDS), HoldoutUse("b", "strict", IDS)], now) == HoldoutReuse(2, 2)


def test_a_test_set_with_a_few_added_rows_counts_as_the_same() -> None:
    now = HoldoutUse("b", "rules", IDS | {"new1", "new2"})
    assert count_reuse([HoldoutUse("a", "rules", IDS)], now) == HoldoutReuse(2, 1)
    different = HoldoutUse("b", "rules", frozenset(f"n{i}" for i in range(11)) | IDS)
    assert count_reuse([HoldoutUse("a", "rules", IDS)], different) == HoldoutReuse(1, 1)


def test_the_hash_of_the_rules_follows_the_rules() -> None:
    assert rules_hash(Release()) == rules_hash(Release(significance_level=0.05))
    assert rules_hash(Release()) != rules_hash(Release(significance_level=0.10))


def test_decisions_are_recorded_with_their_first_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    assert recorded_uses(store) == []
    decision = Decision("REJECT", "a", "e", (), "no")
    use = HoldoutUse("a", "rules", IDS)
    for at in ("2026-01-05T10:00:00+00:00", "2026-01-06T10:00:00+00:00"):
        record_use(store, use, decision, at)
    assert recorded_uses(task_store(tmp_path, monkeypatch)) == [use]
    text = next((tmp_path / "data").rglob("decisions/*.json")).read_text("utf-8")
    assert "2026-01-05" in text  # its first time is kept


@pytest.mark.parametrize("text", ["{", "[]", '{"adapter": "a"}', "\xff"])
def test_a_damaged_decision_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    store = task_store(tmp_path, monkeypatch)
    record_use(
        store, HoldoutUse("a", "rules", IDS), Decision("REJECT", "a", "e", (), "no"), "2026-01-05T10:00:00+00:00"
    )
    path = next((tmp_path / "data").rglob("decisions/*.json"))
    path.write_text(text, "latin-1")
    with pytest.raises(StorageError, match=f"{path.name} is damaged"):
        recorded_uses(store)
