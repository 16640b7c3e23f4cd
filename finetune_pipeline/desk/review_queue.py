"""One expert's way through the sample: which row comes next, which came before, how far it is. Pure; no I/O, no clock.

    seat = queue_of(rows, reviews, rules, "anna")
    seat.next_after("9f1c20e4a7b35d68")        the next row that needs this expert's verdict, round the sample

Nothing is kept about where somebody is: it follows from the verdicts, so a browser closed and opened elsewhere goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Review
from finetune_pipeline.review.verdict_store import by_row, todo


@dataclass(frozen=True, slots=True)
class ReviewQueue:
    """The sample as one expert has it before them. `left` holds the ids of the rows that still need this expert.
    `flagged` rows may be judged too, but are no part of the sample."""

    rows: tuple[Example, ...]
    left: frozenset[str]
    mine: tuple[Review, ...]
    flagged: tuple[Example, ...] = ()

    @property
    def done(self) -> int:
        return len(self.rows) - len(self.left)

    def row(self, id_: str | None) -> Example | None:
        return next((row for row in (*self.rows, *self.flagged) if row.id == id_), None)

    def number(self, row: Example) -> int:
        """Its place in the sample, or (behind it) among the flagged rows."""
        return (*self.rows, *self.flagged).index(row) + 1

    def next_after(self, id_: str | None) -> Example | None:
        """The next row to judge after `id_` in the sample's order, then from the start; None when all are judged."""
        at = next((place for place, row in enumerate(self.rows) if row.id == id_), -1)
        ordered = self.rows[at + 1 :] + self.rows[: at + 1]
        return next((row for row in ordered if row.id in self.left), None)

    def before(self, row: Example) -> Example | None:
        """The row before this one, judged or not; None for the first."""
        at = self.rows.index(row) if row in self.rows else 0
        return self.rows[at - 1] if at else None

    def taken(self, row: Example) -> bool:
        """Has the row all the verdicts it needs, from others? Then this expert's is not wanted any more. Flagged rows
        need none, and everybody may judge them."""
        return row in self.rows and row.id not in self.left and self.said(row) is None

    def said(self, row: Example) -> Review | None:
        """What this expert said of the row as it is now."""
        return next((r for r in self.mine if r.id == row.id and r.content_hash == row.content_hash), None)

    @property
    def last(self) -> Review | None:
        """The expert's latest verdict that was given here: what "undo" takes back."""
        given = [review for review in self.mine if not review.recorded]
        return max(given, key=lambda review: review.at, default=None)


def queue_of(
    rows: Sequence[Example],
    reviews: Sequence[Review],
    rules: ReviewRules,
    reviewer: str,
    flagged: Sequence[Example] = (),
) -> ReviewQueue:
    """`reviews` as verdict_store.load_for gives them for the rows of the sample and the flagged ones."""
    given = by_row([*rows, *flagged], reviews).values()
    mine = tuple(review for group in given for review in group if review.reviewer == reviewer)
    left = frozenset(row.id for row in todo(rows, reviews, rules, reviewer))
    return ReviewQueue(tuple(rows), left, mine, tuple(flagged))
