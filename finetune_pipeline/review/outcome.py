"""Apply the experts' verdicts to the rows: keep, edit or drop. Pure but for `apply_edit`.

    apply_reviews(rows, {"9f1c…": [Review(…, decision="reject")]}, Edits(task).applied, task)
    → ReviewedRows(kept=(…), fixes=(), drops=(Drop("9f1c…", "tickets.csv:12", "review", "expert-rejected", "anna"),))

The majority of a row's reviewers decides: more than half approve it, reject it, or give one and the same edit. Without
a majority the row is dropped (`reviewers-disagree`), since the right completion is unknown. A row whose edit fails the
rules for every row is dropped too (`edit-refused`), and so is one that an edit makes a duplicate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from finetune_pipeline.clean.row_cleaner import RowDropped
from finetune_pipeline.config import Task
from finetune_pipeline.records import Drop, Example, Fix, Review
from finetune_pipeline.review.edits import without_repeated
from finetune_pipeline.review.verdict_store import approves

STAGE = "review"
ApplyEdit: TypeAlias = Callable[[Example, str], tuple[Example, list[str]]]  # Edits.applied
Outcome: TypeAlias = Literal["keep", "edit", "expert-rejected", "reviewers-disagree"]


@dataclass(frozen=True, slots=True)
class ReviewedRows:
    """The rows after the review: len(kept) + len(drops) is the number of rows before it."""

    kept: tuple[Example, ...]
    fixes: tuple[Fix, ...]
    drops: tuple[Drop, ...]


def apply_reviews(
    rows: Iterable[Example], reviews: Mapping[str, Sequence[Review]], apply_edit: ApplyEdit, task: Task
) -> ReviewedRows:
    """The rows with their verdicts applied; `reviews` by row id. Rows without a verdict are kept."""
    kept: list[Example] = []
    fixes: list[Fix] = []
    drops: list[Drop] = []
    for row in rows:
        given = reviews.get(row.id, ())
        outcome, majority = _majority(row, given)
        if outcome == "keep":
            kept.append(row)
        elif outcome == "edit":
            edited = _edited(row, majority, apply_edit)
            if isinstance(edited, Drop):
                drops.append(edited)
            else:
                kept.append(edited[0])
                fixes += edited[1]
        else:
            drops.append(Drop(row.id, row.origin, STAGE, outcome, _names(majority or given)))
    edited_ids = frozenset(fix.id for fix in fixes if fix.rule == "expert-edit")
    if edited_ids:
        kept, repeated = without_repeated(kept, edited_ids, task)
        drops += [replace(drop, stage=STAGE) for drop in repeated]
    return ReviewedRows(tuple(kept), tuple(fixes), tuple(drops))


def _edited(row: Example, majority: Sequence[Review], apply_edit: ApplyEdit) -> tuple[Example, list[Fix]] | Drop:
    """The edited row with its fixes, or a drop with the rule that the edit fails."""
    try:
        edited, slugs = apply_edit(row, majority[0].completion or "")
    except RowDropped as error:
        detail = f"{_names(majority)}: {error.reason}" + (f" ({error.detail})" if error.detail else "")
        return Drop(row.id, row.origin, STAGE, "edit-refused", detail)
    fixes = [Fix(row.id, row.origin, STAGE, "expert-edit", _names(majority))]
    return edited, fixes + [Fix(row.id, row.origin, STAGE, slug) for slug in dict.fromkeys(slugs)]


def _majority(row: Example, reviews: Sequence[Review]) -> tuple[Outcome, list[Review]]:
    """The outcome for the row, and the reviews that agree on it."""
    if not reviews:
        return "keep", []
    votes = Counter(_vote(row, review) for review in reviews)
    vote, count = votes.most_common(1)[0]
    if 2 * count <= len(reviews):
        return "reviewers-disagree", []
    outcomes: dict[str, Outcome] = {"approve": "keep", "reject": "expert-rejected"}
    return outcomes.get(vote[0], "edit"), [review for review in reviews if _vote(row, review) == vote]


def _vote(row: Example, review: Review) -> tuple[str, str | None]:
    """What a review counts as: an approval, a rejection, or an edit with its completion."""
    return ("approve", None) if approves(row, review) else (review.decision, review.completion)


def _names(reviews: Sequence[Review]) -> str:
    return ", ".join(review.reviewer for review in reviews)
