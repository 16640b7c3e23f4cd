"""An edit is checked like every row; it makes no duplicates, and personal data in it is masked."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from finetune_pipeline.clean.row_cleaner import RowDropped
from finetune_pipeline.records import Example, Review
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


def applied(row: Example, completion: str, **sections: Any) -> tuple[str, str | None, list[str]]:
    edited, slugs = Edits(task(**sections), lambda texts: [len(text.split()) for text in texts]).applied(
        row, completion
    )
    return edited.completion, edited.rejected, slugs


ROW = example("a", "where is it?", "It  is lost.")
PAIR = replace(ROW, rejected="So what?")


@pytest.mark.parametrize(
    ("row", "completion", "rejected"),
    [
        (ROW, " It comes today. ", "It  is lost."),
        (ROW, "It is lost.", None),  # only white space differs
        (PAIR, "It comes today.", "So what?"),  # the row's own preference stays
        (PAIR, "It is lost.", "So what?"),
        (PAIR, "So  what?", "It  is lost."),  # the expert prefers what was rejected
    ],
)
def test_an_edit_is_preferred_to_what_it_corrects(row: Example, completion: str, rejected: str | None) -> None:
    assert applied(row, completion)[:2] == (completion.strip(), rejected)


def test_a_rejected_completion_keeps_its_form_whatever_the_form_of_the_edit() -> None:
    json = {"answer": {"format": "json", "schema": {"properties": {"intent": {"type": "string"}}}}}
    fenced = '```json\n{"intent": "x"}\n```'
    row = replace(example("a", "where?", '{"intent": "x"}'), rejected=fenced)
    assert applied(row, '{"intent":"y"}', **json) == ('{"intent": "y"}', fenced, ["completion-form"])
    assert applied(replace(row, rejected=None), '{ "intent": "x"}', **json)[1] is None


KEY = "AKIA" + "IOSFODNN7Q2SAMPL"


def test_what_an_edit_removes_from_the_data_does_not_return_as_the_rejected_completion() -> None:
    secret = example("a", "which key?", f"Use {KEY} for it.")
    assert applied(secret, "Ask the help desk.") == ("Ask the help desk.", None, ["rejected-completion-unusable"])
    long = example("a", "tell me", "word " * 60)
    assert applied(long, "Briefly.", clean={"max_tokens": 40})[1:] == (None, ["rejected-completion-too-long"])
    with pytest.raises(RowDropped, match="no-secrets"):
        applied(PAIR, f"Use {KEY}.")


def test_of_two_rows_that_an_edit_makes_equal_the_pair_stays() -> None:
    rows = [example("a", "where is it?", "Here."), replace(example("b", "where is it?", "Here."), rejected="Lost.")]
    kept, (drop,) = without_repeated(rows, frozenset({"b"}), task())
    assert (kept, drop.id, drop.reason) == ([rows[1]], "a", "exact-duplicate")
