"""Compute the figures of the review gate from rows and verdicts. Pure.

    review_figures(rows, reviews, rules, Round(population=900)).lower_bound        # 0.861 for 57 of 60 rows

The bound takes into account how many interim analyses there were (bounds.py). Where all rows that the estimate is about
were reviewed, the bound is the observed share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Review
from finetune_pipeline.review.agreement import Agreement, agreement
from finetune_pipeline.review.bounds import round_confidence, rows_needed
from finetune_pipeline.review.rounds import Round
from finetune_pipeline.review.verdict_store import by_row, is_right, progress
from finetune_pipeline.statistics.proportion import clopper_pearson, lower_bound


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row that is not right as it is, and its verdicts ("anna: reject (wrong intent)")."""

    id: str
    origin: str
    verdicts: list[str]


@dataclass(frozen=True, slots=True)
class ReviewFigures:
    """The figures of the gate's verdict: shares from 0 to 1, rows as counts.

    `analysis`: number of the interim analysis (bounds.py); `rows`: reviewed rows and those that are `gone` (drawn and
    no longer in the data); `sample`: rows of the sample; `right`: rows that the majority approved; `population`: rows
    that nobody had reviewed when the round began (None: unknown); `fresh_rows_*`: rows of a new sample that reach
    `min_approved`, if none is wrong and if the same share is right (None: no number does); `recorded` of the `verdicts`
    were not given in the desk.
    """

    round: int
    analysis: int
    rows: int
    gone: int
    sample: int
    right: int
    share: float
    lower_bound: float
    interval: list[float]
    min_approved: float
    confidence: float
    round_confidence: float
    population: int | None
    fresh_rows_none_wrong: int | None
    fresh_rows_same_share: int | None
    recorded: int
    verdicts: int
    reviewers: list[str]
    wrong: list[WrongRow]
    agreement: list[Agreement]

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> ReviewFigures:
        """TypeError names a wrong or missing key."""
        nested = {"wrong": [WrongRow(**row) for row in plain["wrong"]]}
        return ReviewFigures(**{**plain, **nested, "agreement": [Agreement(**pair) for pair in plain["agreement"]]})


def review_figures(
    rows: Sequence[Example], reviews: Sequence[Review], rules: ReviewRules, review_round: Round
) -> ReviewFigures:
    """The figures of the sample's `rows`. Rows without all their verdicts are not counted."""
    given = by_row(rows, reviews)
    state = progress(rows, reviews, rules)
    incomplete = set(state.missing)
    n, k = state.done + review_round.gone, state.right
    share = k / n if n else 0.0
    confidence = round_confidence(rules.confidence, review_round.analysis)
    population = review_round.population
    all_reviewed = population is not None and len(rows) >= population and not incomplete
    bound = share if all_reviewed else lower_bound(k, n, confidence)
    next_analysis = review_round.analysis + (not reaches_threshold(share, bound, rules))
    needed = rows_needed(share, rules, next_analysis)
    wrong = [row for row in rows if row.id not in incomplete and not is_right(row, given[row.id])]
    return ReviewFigures(
        round=review_round.number,
        analysis=review_round.analysis,
        rows=n,
        gone=review_round.gone,
        sample=state.total,
        right=k,
        share=share,
        lower_bound=bound,
        interval=list(clopper_pearson(k, n, rules.confidence)),
        min_approved=rules.min_approved,
        confidence=rules.confidence,
        round_confidence=confidence,
        population=population,
        fresh_rows_none_wrong=needed.none_wrong,
        fresh_rows_same_share=needed.same_share,
        recorded=state.recorded,
        verdicts=state.verdicts,
        reviewers=sorted({review.reviewer for group in given.values() for review in group}),
        wrong=[_wrong_row(row, given[row.id]) for row in wrong],
        agreement=agreement(rows, given),
    )


def reaches_threshold(share: float, bound: float, rules: ReviewRules) -> bool:
    """Whether the share reaches the threshold, and the bound too where the declaration requires it."""
    return share >= rules.min_approved and (bound >= rules.min_approved or not rules.require_lower_bound)


def _wrong_row(row: Example, reviews: Sequence[Review]) -> WrongRow:
    verdicts = [
        f"{review.reviewer}: {review.decision}" + (f" ({review.note})" if review.note else "") for review in reviews
    ]
    return WrongRow(row.id, row.origin, verdicts)
