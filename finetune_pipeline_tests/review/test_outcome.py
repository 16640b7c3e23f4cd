"""What the verdicts do to the rows: keep, edit, or drop with a reason."""

from __future__ import annotations

from dataclasses import replace

from finetune_pipeline.records import Example
from finetune_pipeline.review.edits import Edits
from finetune_pipeline.review.outcome import apply_reviews
from finetune_pipeline_tests.artifacts import example, task
from finetune_pipeline_tests.review.verdicts import ROWS, verdict


def apply_unchecked(row: Example, completion: str) -> tuple[Example, list[str]]:
    return row.with_completion(completion), []


def test_a_row_without_a_majority_is_dropped() -> None:
    row = ROWS[0]
    reviews = {row.id: [verdict(row), verdict(row, "edit", "bob", "other")]}
    reviewed = apply_reviews(ROWS, reviews, apply_unchecked, task())
    assert [drop.reason for drop in reviewed.drops] == ["reviewers-disagree"]
    assert len(reviewed.kept) + len(reviewed.drops) == len(ROWS)


def test_the_same_edit_of_two_of_three_reviewers_is_applied() -> None:
    row = ROWS[0]
    edits = [verdict(row, "edit", name, "other") for name in ("bob", "carla")]
    reviewed = apply_reviews(ROWS, {row.id: [verdict(row), *edits]}, apply_unchecked, task())
    assert reviewed.kept[0].completion == "other"
    assert reviewed.fixes[0].detail == "bob, carla"


def test_a_row_whose_edit_breaks_the_answer_format_is_dropped_with_the_reason() -> None:
    declared = task(answer={"format": "label", "labels": ["delivery", "refund"]})
    row = example("x", "where is it?", "refund")
    reviews = {"x": [verdict(row, "edit", completion="shipping")]}
    reviewed = apply_reviews([row], reviews, Edits(declared).applied, declared)
    assert [(drop.reason, drop.detail) for drop in reviewed.drops] == [
        ("edit-refused", "anna: invalid-completion ('shipping' is not one of the 2 labels)")
    ]
    fixable = {"x": [verdict(row, "edit", completion=" Delivery ")]}
    kept = apply_reviews([row], fixable, Edits(declared).applied, declared).kept
    assert kept == (replace(row.with_completion("delivery"), rejected="refund"),)
