"""Test rows are known again: by id, by question, under their seed, and never lost silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.errors import StorageError
from finetune_pipeline.split.memory import Memory, extended, frozen_file, known_sides, recall, remember
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, task_store

ROWS = [example("a", "where is it?", "x"), example("b", "refund please", "x")]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def memory() -> Memory:
    return extended({}, ROWS, {"a": "test", "b": "train"})


def test_what_is_remembered_is_recalled_under_its_seed(store: TaskStore, memory: Memory) -> None:
    assert recall(store, 11) == {}
    remember(store, 11, memory)
    remember(store, 12, {})
    assert recall(store, 11) == memory
    assert recall(store, 12) == {}


def test_the_same_question_is_known_under_another_id(memory: Memory) -> None:
    again = [example("c", "Where is it", "y"), example("d", "REFUND, please!", "y"), example("e", "hello", "y")]
    assert known_sides(again, memory) == {"c": "test", "d": "train"}


def test_an_id_keeps_its_side_when_its_text_changes(memory: Memory) -> None:
    assert known_sides([example("a", "refund please", "x")], memory) == {"a": "test"}


def test_a_question_once_in_test_stays_test_though_it_also_trained(memory: Memory) -> None:
    both = extended(memory, [example("z", "where is it", "x")], {"z": "train"})
    assert known_sides([example("new", "where is it", "x")], both) == {"new": "test"}


def test_rows_that_are_gone_or_dropped_stay_remembered(memory: Memory) -> None:
    later = extended(memory, [ROWS[1]], {})
    assert later == memory


def test_a_damaged_file_stops_the_run(store: TaskStore, memory: Memory) -> None:
    remember(store, 11, memory)
    frozen_file(store).write_text("{", encoding="utf-8")
    with pytest.raises(StorageError, match="which rows are test rows for good"):
        recall(store, 11)
