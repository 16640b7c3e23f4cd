"""The order of the rows for one reviewer: which row is next, which was before, how many are done. No I/O, no clock.

    queue = queue_of(rows, reviews, rules, "anna")
    queue.next_after("9f1c20e4a7b35d68")        the next row that needs anna's verdict, from there around the sample

The position is not stored: it follows from the verdicts, so that a review continues in another browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Review
from finetune_pipeline.review.verdict_store import by_row, todo


@dataclass(frozen=True, slots=True)
class ReviewQueue:
    """`rows`: the sample; `left`: ids of the rows that still need this reviewer; `own`: this reviewer's verdicts;
    `flagged`: rows that may be reviewed, too, but are not part of the sample."""

    rows: tuple[Example, ...]
    left: frozenset[str]
    own: tuple[Review, ...]
    flagged: tuple[Example, ...] = ()

    @property
    def done(self) -> int:
        """Rows of the sample that do not need this reviewer any more."""
        return len(self.rows) - len(self.left)

    def row(self, id_: str | None) -> Example | None:
        """The row of this id, in the sample or flagged."""
        return next((row for row in (*self.rows, *self.flagged) if row.id == id_), None)

    def number(self, row: Example) -> int:
        """Its position, from 1, in the sample followed by the flagged rows."""
        return (*self.rows, *self.flagged).index(row) + 1

    def next_after(self, id_: str | None) -> Example | None:
        """The next row in `left` after `id_`, in the order of the sample and then from its start; None if there is
        none."""
        position = next((index for index, row in enumerate(self.rows) if row.id == id_), -1)
        ordered = self.rows[position + 1 :] + self.rows[: position + 1]
        return next((row for row in ordered if row.id in self.left), None)

    def before(self, row: Example) -> Example | None:
        """The row before this one, reviewed or not; None for the first."""
        position = self.rows.index(row) if row in self.rows else 0
        return self.rows[position - 1] if position else None

    def is_taken(self, row: Example) -> bool:
        """Whether others gave the row all verdicts that it needs. A flagged row needs none, and is never taken."""
        return row in self.rows and row.id not in self.left and self.verdict_on(row) is None

    def verdict_on(self, row: Example) -> Review | None:
        """This reviewer's verdict on the current content of the row."""
        return next((r for r in self.own if r.id == row.id and r.content_hash == row.content_hash), None)

    @property
    def last(self) -> Review | None:
        """This reviewer's latest verdict in the desk, which "undo" deletes."""
        in_desk = [review for review in self.own if not review.recorded]
        return max(in_desk, key=lambda review: review.at, default=None)


def queue_of(
    rows: Sequence[Example],
    reviews: Sequence[Review],
    rules: ReviewRules,
    reviewer: str,
    flagged: Sequence[Example] = (),
) -> ReviewQueue:
    """`reviews`: the result of `verdict_store.load_for` for the sample and the flagged rows."""
    by_id = by_row([*rows, *flagged], reviews).values()
    own = tuple(review for group in by_id for review in group if review.reviewer == reviewer)
    left = frozenset(row.id for row in todo(rows, reviews, rules, reviewer))
    return ReviewQueue(tuple(rows), left, own, tuple(flagged))
