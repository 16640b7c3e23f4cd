"""The order of the rows for one reviewer."""

from __future__ import annotations

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.desk.review_queue import queue_of
from finetune_pipeline.records import Example, Review

from .sample_tasks import example

ROWS = [example(number) for number in range(4)]
ONE, TWO = ReviewRules(), ReviewRules(reviewers=2)


def approval(row: Example, who: str = "anna", at: str = "2026-01-05", recorded: bool = False) -> Review:
    return Review(row.id, row.content_hash, who, "approve", at, recorded=recorded)


def test_skipping_continues_at_the_start_of_the_sample() -> None:
    queue = queue_of(ROWS, [approval(ROWS[1])], ONE, "anna")
    assert queue.next_after(None) == ROWS[0]
    assert queue.next_after(ROWS[0].id) == ROWS[2]
    assert queue.next_after(ROWS[3].id) == ROWS[0]
    assert queue.next_after("gone") == ROWS[0]
    assert queue.done == 1


def test_the_only_row_left_is_next_after_itself() -> None:
    queue = queue_of(ROWS, [approval(row) for row in ROWS[1:]], ONE, "anna")
    assert queue.next_after(ROWS[0].id) == ROWS[0]
    assert queue_of(ROWS, [approval(row) for row in ROWS], ONE, "anna").next_after(None) is None


def test_back_goes_to_reviewed_rows_too() -> None:
    queue = queue_of(ROWS, [approval(ROWS[0])], ONE, "anna")
    assert queue.before(ROWS[1]) == ROWS[0] and queue.before(ROWS[0]) is None
    assert queue.verdict_on(ROWS[0]) is not None and queue.verdict_on(ROWS[1]) is None


def test_two_reviewers_have_separate_queues() -> None:
    reviews = [approval(ROWS[0]), approval(ROWS[1])]
    assert queue_of(ROWS, reviews, TWO, "anna").next_after(None) == ROWS[2]
    assert queue_of(ROWS, reviews, TWO, "bert").next_after(None) == ROWS[0]
    assert queue_of(ROWS, reviews, ONE, "bert").next_after(None) == ROWS[2]


def test_undo_takes_the_latest_verdict_of_the_desk() -> None:
    reviews = [
        approval(ROWS[0], at="2026-01-07"),
        approval(ROWS[1], at="2026-01-06"),
        approval(ROWS[2], at="2027", recorded=True),
    ]
    last = queue_of(ROWS, reviews, ONE, "anna").last
    assert last is not None and last.id == ROWS[0].id
    assert queue_of(ROWS, reviews, ONE, "bert").last is None


def test_a_verdict_on_other_content_does_not_count() -> None:
    old = Review(ROWS[0].id, "other", "anna", "approve", "2026")
    assert queue_of(ROWS, [old], ONE, "anna").verdict_on(ROWS[0]) is None
