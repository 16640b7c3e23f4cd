"""Test rows are recognized by id, by prompt and when reworded, by seed; a lost file is an error."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import Example, Message, Verdict
from finetune_pipeline.split.frozen_test import (
    FrozenRow,
    FrozenRows,
    frozen_file,
    frozen_splits,
    load_frozen_rows,
    reworded_test_rows,
    save_frozen_rows,
    with_split,
)
from finetune_pipeline.split.leakage import row_similarity
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, task_store

ROWS = [example("a", "where is it?", "x"), example("b", "refund please", "x")]
WORDS = ("".join(random.Random(n).choices("abcdefghijklmnoprstu", k=6)) for n in range(500))
VOCABULARY = tuple(WORDS)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def frozen_rows() -> FrozenRows:
    return with_split({}, ROWS, {"a": "test", "b": "train"}, row_similarity(ROWS, 0.6))


def long_rows(count: int, prefix: str, instruction: str = "") -> list[Example]:
    rng = random.Random(prefix)
    return [example(f"{prefix}{n}", instruction + " ".join(rng.choices(VOCABULARY, k=14)), "x") for n in range(count)]


def reworded(row: Example, id_: str) -> Example:
    return example(id_, row.prompt + " thanks", row.completion)


def test_saved_rows_are_loaded_for_their_seed(store: TaskStore, frozen_rows: FrozenRows) -> None:
    assert load_frozen_rows(store, 11) == {}
    save_frozen_rows(store, 11, frozen_rows)
    save_frozen_rows(store, 12, {"z": FrozenRow("train", "q")})
    assert load_frozen_rows(store, 11) == frozen_rows
    assert load_frozen_rows(store, 12) == {"z": FrozenRow("train", "q")}


def test_the_file_is_beside_the_declaration_and_contains_no_text(store: TaskStore, frozen_rows: FrozenRows) -> None:
    save_frozen_rows(store, 11, frozen_rows)
    assert frozen_file(store) == store.root / "frozen_test.jsonl"
    text = frozen_file(store).read_text(encoding="utf-8")
    assert "refund" not in text
    assert len(text.splitlines()) == 2
    save_frozen_rows(store, 11, frozen_rows)
    assert frozen_file(store).read_text(encoding="utf-8") == text


def test_the_same_prompt_is_recognized_under_another_id(frozen_rows: FrozenRows) -> None:
    again = [example("c", "Where is it", "y"), example("d", "REFUND, please!", "y"), example("e", "hello", "y")]
    assert frozen_splits(again, frozen_rows) == {"c": "test", "d": "train"}


def test_an_id_keeps_its_split_when_its_text_changes(frozen_rows: FrozenRows) -> None:
    assert frozen_splits([example("a", "refund please", "x")], frozen_rows) == {"a": "test"}


def test_a_prompt_that_was_in_test_and_in_training_stays_test(frozen_rows: FrozenRows) -> None:
    other = [example("z", "where is it", "x")]
    both = with_split(frozen_rows, other, {"z": "train"}, row_similarity(other, 0.6))
    assert frozen_splits([example("new", "where is it", "x")], both) == {"new": "test"}


def test_rows_that_are_removed_or_dropped_stay_in_the_file(frozen_rows: FrozenRows) -> None:
    later = with_split(frozen_rows, [ROWS[1]], {}, row_similarity(ROWS, 0.6))
    assert later == frozen_rows


@pytest.mark.parametrize("instruction", ["", "Decide which intent the message has and answer with its name only. " * 6])
def test_a_reworded_test_row_is_recognized_after_the_row_was_removed(instruction: str) -> None:
    old, new = long_rows(300, "old", instruction), long_rows(300, "new", instruction)
    split_of = {row.id: "test" if n < 60 else "train" for n, row in enumerate(old)}
    frozen_rows = with_split({}, old, split_of, row_similarity(old, 0.6))  # type: ignore[arg-type]
    back = [reworded(row, f"back-{row.id}") for row in old[:60]]
    rows = [*new, *back]
    found = reworded_test_rows(rows, frozen_splits(rows, frozen_rows), frozen_rows, row_similarity(rows, 0.6))
    assert found == {f"back-{row.id}": row.id for row in old[:60]}


def test_a_conversation_that_begins_with_a_frozen_test_prompt_is_recognized(frozen_rows: FrozenRows) -> None:
    def longer(id_: str, first: str) -> Example:
        said = (Message("assistant", "Which?"), Message("user", "the lamp"), Message("assistant", "x"))
        return replace(example(id_, "", ""), messages=(Message("user", first), *said))

    rows = [longer("c", "Where is it"), longer("d", "refund please"), longer("e", "hello")]
    found = reworded_test_rows(rows, frozen_splits(rows, frozen_rows), frozen_rows, row_similarity(rows, 0.6))
    assert found == {"c": "a"}
    assert reworded_test_rows(rows, {}, frozen_rows, row_similarity(rows, 1.0)) == {"c": "a"}


FORM = (
    "Sent from the contact form of our web shop by a customer who is signed in. The message of the customer follows. "
)


@pytest.mark.parametrize("before", ["", FORM], ids=["header", "instruction too"])
def test_a_reworded_test_row_is_recognized_when_many_rows_come_to_share_its_header(before: str) -> None:
    plain, form = long_rows(400, "plain", before), long_rows(40, "form", before + FORM)
    split_of = {row.id: "test" if n < 12 else "train" for n, row in enumerate([*form, *plain])}
    frozen_rows = with_split({}, [*form, *plain], split_of, row_similarity([*form, *plain], 0.6))  # type: ignore[arg-type]
    back = [reworded(row, f"back-{row.id}") for row in form[:12]]
    rows = [*plain, *form[12:], *back, *long_rows(60, "more", before + FORM)]
    found = reworded_test_rows(rows, frozen_splits(rows, frozen_rows), frozen_rows, row_similarity(rows, 0.6))
    assert found == {f"back-{row.id}": row.id for row in form[:12]}


def test_a_shared_header_that_is_most_of_a_row_makes_it_no_test_row() -> None:
    plain, form = long_rows(400, "plain"), [example(f"form{n}", FORM * 3 + VOCABULARY[n], "x") for n in range(30)]
    split_of = {row.id: "test" if n < 30 else "train" for n, row in enumerate([*form, *plain])}
    frozen_rows = with_split({}, [*form, *plain], split_of, row_similarity([*form, *plain], 0.6))  # type: ignore[arg-type]
    more = [example(f"more{n}", f"{FORM * 3}{VOCABULARY[100 + n]} {VOCABULARY[300 + n]}", "x") for n in range(100)]
    rows = [*plain, *more]
    assert reworded_test_rows(rows, frozen_splits(rows, frozen_rows), frozen_rows, row_similarity(rows, 0.6)) == {}


def test_signatures_are_the_same_as_in_earlier_versions() -> None:
    """A change of what is hashed would make every committed signature useless."""
    rows = [example("a", "Where is my parcel, order HV-48213?", "x")]
    signature = with_split({}, rows, {"a": "test"}, row_similarity(rows, 0.6))["a"].signature
    assert hashlib.sha256(signature.encode()).hexdigest()[:16] == "69f10920381788b4"


def test_frozen_rows_are_not_compared_by_signature(frozen_rows: FrozenRows) -> None:
    assert reworded_test_rows(ROWS, frozen_splits(ROWS, frozen_rows), frozen_rows, row_similarity(ROWS, 0.6)) == {}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"seed": 11, "split": "left", "id": "a", "prompt_hash": "b"}',
        "<<<<<<< HEAD",
        "[1]",
        '{"seed": 11, "split": "test", "id": "a", "prompt_hash": "b", "signature": "AAAA"}',
    ],
)
def test_a_damaged_line_is_an_error_that_names_it(store: TaskStore, frozen_rows: FrozenRows, text: str) -> None:
    save_frozen_rows(store, 11, frozen_rows)
    frozen_file(store).write_text(frozen_file(store).read_text(encoding="utf-8") + text, encoding="utf-8")
    with pytest.raises(StorageError, match=r"frozen_test.jsonl:3, the file of frozen test rows, is damaged"):
        load_frozen_rows(store, 11)


def test_a_missing_file_beside_a_split_is_an_error_with_a_hint(store: TaskStore) -> None:
    declared = {"declaration": {"split": {"seed": 11}}}
    with store.scratch("data_split") as folder:
        verdict = Verdict("data_split", True, "hash", "fine").to_json()
        store.commit("data_split", "k", folder, {"summary": {}, "inputs": {}, "verdict": verdict, **declared})
    with pytest.raises(StorageError, match="is missing") as caught:
        load_frozen_rows(store, 11)
    assert "version control" in str(caught.value.hint)
    assert "split.seed" in str(caught.value.hint)
    assert load_frozen_rows(store, 12) == {}, "another seed starts a new test set"


def test_a_failed_split_needs_no_file(store: TaskStore) -> None:
    finished(store, "data_split", {}, Verdict("data_split", False, "hash", "overlap"))
    assert load_frozen_rows(store, 11) == {}
