"""One expert's way through the sample."""

from __future__ import annotations

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.desk.review_queue import queue_of
from finetune_pipeline.records import Example, Review

from .sample_tasks import example

ROWS = [example(number) for number in range(4)]
ONE, TWO = ReviewRules(), ReviewRules(reviewers=2)


def said(row: Example, who: str = "anna", at: str = "2026-01-05", recorded: bool = False) -> Review:
    return Review(row.id, row.content_hash, who, "approve", at, recorded=recorded)


def test_skipping_goes_round_the_sample() -> None:
    queue = queue_of(ROWS, [said(ROWS[1])], ONE, "anna")
    assert queue.next_after(None) == ROWS[0]
    assert queue.next_after(ROWS[0].id) == ROWS[2]
    assert queue.next_after(ROWS[3].id) == ROWS[0]
    assert queue.next_after("gone") == ROWS[0]
    assert queue.done == 1


def test_the_only_row_left_follows_itself_and_then_nothing() -> None:
    queue = queue_of(ROWS, [said(row) for row in ROWS[1:]], ONE, "anna")
    assert queue.next_after(ROWS[0].id) == ROWS[0]
    assert queue_of(ROWS, [said(row) for row in ROWS], ONE, "anna").next_after(None) is None


def test_back_goes_to_judged_rows_too() -> None:
    queue = queue_of(ROWS, [said(ROWS[0])], ONE, "anna")
    assert queue.before(ROWS[1]) == ROWS[0] and queue.before(ROWS[0]) is None
    assert queue.said(ROWS[0]) is not None and queue.said(ROWS[1]) is None


def test_two_experts_have_a_queue_each() -> None:
    reviews = [said(ROWS[0]), said(ROWS[1])]
    assert queue_of(ROWS, reviews, TWO, "anna").next_after(None) == ROWS[2]
    assert queue_of(ROWS, reviews, TWO, "bert").next_after(None) == ROWS[0]
    assert queue_of(ROWS, reviews, ONE, "bert").next_after(None) == ROWS[2]


def test_undo_takes_the_latest_that_was_given_here() -> None:
    reviews = [said(ROWS[0], at="2026-01-07"), said(ROWS[1], at="2026-01-06"), said(ROWS[2], at="2027", recorded=True)]
    last = queue_of(ROWS, reviews, ONE, "anna").last
    assert last is not None and last.id == ROWS[0].id
    assert queue_of(ROWS, reviews, ONE, "bert").last is None


def test_a_verdict_on_other_content_is_none() -> None:
    old = Review(ROWS[0].id, "other", "anna", "approve", "2026")
    assert queue_of(ROWS, [old], ONE, "anna").said(ROWS[0]) is None
