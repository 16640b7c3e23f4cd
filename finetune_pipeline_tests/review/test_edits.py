"""An edit is checked like every row; it makes no duplicates, and personal data in it is masked."""

from __future__ import annotations

import random

import pytest

from finetune_pipeline.clean.row_cleaner import RowDropped
from finetune_pipeline.records import Review
from finetune_pipeline.review.edits import Edits, without_personal, without_repeated
from finetune_pipeline_tests.artifacts import example, task


def test_the_same_text_under_another_instruction_is_no_duplicate_of_an_edited_row() -> None:
    instructions = (
        "tell whether the customer is angry or complains about",
        "tell whether it is about a parcel or a driver or",
    )
    head = "Read the following message of a customer, which came by the form of the shop, and "
    rng = random.Random(1)
    texts = [" ".join("".join(rng.choices("abcdefghijklmno", k=6)) for _ in range(9)) for _ in range(60)]
    rows = [
        example(f"{n}{i}", f"{head}{instruction} {text}", "yes")
        for n, text in enumerate(texts)
        for i, instruction in enumerate(instructions)
    ]
    assert without_repeated(rows, frozenset({"01", "11"}), task()) == (rows, [])
    again = example("again", f"{rows[0].prompt} please", "yes")
    kept, drops = without_repeated([*rows, again], frozenset({"again"}), task())
    assert (kept, [drop.id for drop in drops]) == (rows, ["again"])


def test_an_edit_with_personal_data_is_dropped_where_the_task_drops_such_rows() -> None:
    row = example("a", "prompt", "completion")
    edits = Edits(task(clean={"personal_data": "drop"}))
    with pytest.raises(RowDropped, match="EMAIL"):
        edits.applied(row, "write to jo@example.com")
    review = Review(row.id, row.content_hash, "anna", "edit", "2026-01-05", "jo@example.com", "from jo@example.com")
    kept = without_personal(review, task(clean={"personal_data": "drop"}))
    assert (kept.note, kept.completion) == ("from <EMAIL>", "<EMAIL>")
    assert without_personal(review, task(clean={"personal_data": "keep"})) == review
