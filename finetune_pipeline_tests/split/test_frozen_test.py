"""Test rows are known again: by id, by question, reworded, under their seed, and never lost silently."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest

from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import Example, Verdict
from finetune_pipeline.split.frozen_test import (
    Decided,
    Memory,
    extended,
    frozen_file,
    known_splits,
    recall,
    remember,
    resembling,
)
from finetune_pipeline.split.leakage import alike_of
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, task_store

ROWS = [example("a", "where is it?", "x"), example("b", "refund please", "x")]
WORDS = ("".join(random.Random(n).choices("abcdefghijklmnoprstu", k=6)) for n in range(500))
VOCABULARY = tuple(WORDS)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def memory() -> Memory:
    return extended({}, ROWS, {"a": "test", "b": "train"}, alike_of(ROWS, 0.6))


def long_rows(count: int, prefix: str, instruction: str = "") -> list[Example]:
    dice = random.Random(prefix)
    return [example(f"{prefix}{n}", instruction + " ".join(dice.choices(VOCABULARY, k=14)), "x") for n in range(count)]


def reworded(row: Example, id_: str) -> Example:
    return example(id_, row.prompt + " thanks", row.completion)


def test_what_is_remembered_is_recalled_under_its_seed(store: TaskStore, memory: Memory) -> None:
    assert recall(store, 11) == {}
    remember(store, 11, memory)
    remember(store, 12, {"z": Decided("train", "q")})
    assert recall(store, 11) == memory
    assert recall(store, 12) == {"z": Decided("train", "q")}


def test_the_file_lies_beside_the_declaration_and_holds_no_text(store: TaskStore, memory: Memory) -> None:
    remember(store, 11, memory)
    assert frozen_file(store) == store.root / "frozen_test.jsonl"
    text = frozen_file(store).read_text(encoding="utf-8")
    assert "refund" not in text
    assert len(text.splitlines()) == 2
    remember(store, 11, memory)
    assert frozen_file(store).read_text(encoding="utf-8") == text


def test_the_same_question_is_known_under_another_id(memory: Memory) -> None:
    again = [example("c", "Where is it", "y"), example("d", "REFUND, please!", "y"), example("e", "hello", "y")]
    assert known_splits(again, memory) == {"c": "test", "d": "train"}


def test_an_id_keeps_its_side_when_its_text_changes(memory: Memory) -> None:
    assert known_splits([example("a", "refund please", "x")], memory) == {"a": "test"}


def test_a_question_once_in_test_stays_test_though_it_also_trained(memory: Memory) -> None:
    other = [example("z", "where is it", "x")]
    both = extended(memory, other, {"z": "train"}, alike_of(other, 0.6))
    assert known_splits([example("new", "where is it", "x")], both) == {"new": "test"}


def test_rows_that_are_gone_or_dropped_stay_remembered(memory: Memory) -> None:
    later = extended(memory, [ROWS[1]], {}, alike_of(ROWS, 0.6))
    assert later == memory


@pytest.mark.parametrize("instruction", ["", "Decide which intent the message has and answer with its name only. " * 6])
def test_a_reworded_test_row_is_recognized_though_the_row_itself_is_gone(instruction: str) -> None:
    old, new = long_rows(300, "old", instruction), long_rows(300, "new", instruction)
    split_of = {row.id: "test" if n < 60 else "train" for n, row in enumerate(old)}
    memory = extended({}, old, split_of, alike_of(old, 0.6))  # type: ignore[arg-type]
    back = [reworded(row, f"back-{row.id}") for row in old[:60]]
    rows = [*new, *back]
    found = resembling(rows, known_splits(rows, memory), memory, alike_of(rows, 0.6))
    assert found == {f"back-{row.id}": row.id for row in old[:60]}


FORM = (
    "Sent from the contact form of our web shop by a customer who is signed in. The message of the customer follows. "
)


@pytest.mark.parametrize("before", ["", FORM], ids=["header", "instruction too"])
def test_a_reworded_test_row_is_recognized_when_its_header_becomes_one_of_many(before: str) -> None:
    plain, form = long_rows(400, "plain", before), long_rows(40, "form", before + FORM)
    split_of = {row.id: "test" if n < 12 else "train" for n, row in enumerate([*form, *plain])}
    memory = extended({}, [*form, *plain], split_of, alike_of([*form, *plain], 0.6))  # type: ignore[arg-type]
    back = [reworded(row, f"back-{row.id}") for row in form[:12]]
    rows = [*plain, *form[12:], *back, *long_rows(60, "more", before + FORM)]
    found = resembling(rows, known_splits(rows, memory), memory, alike_of(rows, 0.6))
    assert found == {f"back-{row.id}": row.id for row in form[:12]}


def test_a_header_that_is_most_of_a_row_makes_no_row_a_test_row() -> None:
    plain, form = long_rows(400, "plain"), [example(f"form{n}", FORM * 3 + VOCABULARY[n], "x") for n in range(30)]
    split_of = {row.id: "test" if n < 30 else "train" for n, row in enumerate([*form, *plain])}
    memory = extended({}, [*form, *plain], split_of, alike_of([*form, *plain], 0.6))  # type: ignore[arg-type]
    more = [example(f"more{n}", f"{FORM * 3}{VOCABULARY[100 + n]} {VOCABULARY[300 + n]}", "x") for n in range(100)]
    rows = [*plain, *more]
    assert resembling(rows, known_splits(rows, memory), memory, alike_of(rows, 0.6)) == {}


def test_signatures_stay_what_they_are_in_files_of_earlier_versions() -> None:
    """A change of what is hashed makes every committed signature useless: recognize it here, not in a leak."""
    rows = [example("a", "Where is my parcel, order HV-48213?", "x")]
    signature = extended({}, rows, {"a": "test"}, alike_of(rows, 0.6))["a"].signature
    assert hashlib.sha256(signature.encode()).hexdigest()[:16] == "69f10920381788b4"


def test_rows_that_are_known_are_not_looked_up_again(memory: Memory) -> None:
    assert resembling(ROWS, known_splits(ROWS, memory), memory, alike_of(ROWS, 0.6)) == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"seed": 11, "split": "left", "id": "a", "prompt": "b"}',
        "<<<<<<< HEAD",
        "[1]",
        '{"seed": 11, "split": "test", "id": "a", "prompt": "b", "signature": "AAAA"}',
    ],
)
def test_a_damaged_file_stops_the_run(store: TaskStore, memory: Memory, text: str) -> None:
    remember(store, 11, memory)
    frozen_file(store).write_text(frozen_file(store).read_text(encoding="utf-8") + text, encoding="utf-8")
    with pytest.raises(StorageError, match=r"frozen_test.jsonl:3: .* which rows are test rows for good"):
        recall(store, 11)


def test_a_missing_file_beside_a_split_is_an_error_that_says_what_to_do(store: TaskStore) -> None:
    declared = {"declaration": {"split": {"seed": 11}}}
    with store.scratch("data_split") as folder:
        verdict = Verdict("data_split", True, "hash", "fine").to_json()
        store.commit("data_split", "k", folder, {"summary": {}, "inputs": {}, "verdict": verdict, **declared})
    with pytest.raises(StorageError, match="is missing") as caught:
        recall(store, 11)
    assert "version control" in str(caught.value.hint)
    assert "split.seed" in str(caught.value.hint)
    assert recall(store, 12) == {}, "another seed begins a new test set on purpose"


def test_a_split_that_failed_left_nothing_to_remember(store: TaskStore) -> None:
    finished(store, "data_split", {}, Verdict("data_split", False, "hash", "overlap"))
    assert recall(store, 11) == {}
