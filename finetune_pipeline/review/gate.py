"""Evaluate the review gate: are enough of the reviewed rows right as they are, and what does the sample show? Pure.

    evaluate_review(rows, reviews, rules, content_hash, review_round) -> Verdict
    "round 1: 57 of 60 reviewed rows are right (95 %); with 95 % confidence over all rounds at least 86 % of all"

A row counts as right when the majority of its reviewers approve it; an edited or rejected row was not right, nor was a
row that was removed after it was drawn (sampling.py). The observed share decides, unless `review.require_lower_bound`
makes the lower bound decide as well. The desk shows this verdict during the review, too.

The estimate is about the rows that nobody reviewed in an earlier round, as they are now. All others have verdicts that
are applied: they are approved, edited or dropped (outcome.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Literal

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Check, Example, Review, Verdict
from finetune_pipeline.review.figures import ReviewFigures, reaches_threshold, review_figures
from finetune_pipeline.review.rounds import GateResult, Round
from finetune_pipeline.statistics.formatting import listed, percent, percent_down


def evaluate_review(
    rows: Sequence[Example],
    reviews: Iterable[Review],
    rules: ReviewRules,
    about: str,
    review_round: Round | None = None,
    earlier: Sequence[GateResult] = (),
) -> Verdict:
    """The gate's verdict on the sample's `rows`; `about` is the content hash of the data they were drawn from.

    Rows without all their verdicts are not counted, and fail the gate by a check of their own. `earlier`: the gate's
    results in this round so far.
    """
    review_round, reviews = review_round or Round(), list(reviews)
    figures = review_figures(rows, reviews, rules, review_round)
    checks = (
        _complete_check(figures, rules),
        _share_check(figures, rules),
        _bound_check(figures, rules),
        *_changed_check(reviews, about, earlier),
    )
    passed = all(check.passed for check in checks if check.severity == "error")
    return Verdict("expert_review", passed, about, _summary(figures, rules), checks, asdict(figures))


def _complete_check(figures: ReviewFigures, rules: ReviewRules) -> Check:
    done, total = figures.rows - figures.gone, figures.sample
    per_row = "one verdict" if rules.reviewers == 1 else f"{rules.reviewers} verdicts"
    return Check(
        "every row reviewed", 0 < total == done, f"{total} rows with {per_row} each", f"{done} rows", value=done
    )


def _share_check(figures: ReviewFigures, rules: ReviewRules) -> Check:
    wrong = listed([f"{row.id} ({row.origin})" for row in figures.wrong])
    share = percent_down(figures.share)
    observed = f"{figures.right} of {figures.rows} ({share}) in round {figures.round}"
    if wrong:
        observed += f"; wrong: {wrong}"
    if figures.gone:
        observed += f"; {figures.gone} drawn and no longer in the data, which count as wrong"
    passed = figures.rows > 0 and figures.share >= rules.min_approved
    expected = f"at least {percent(rules.min_approved)}"
    return Check("share of rows that are right", passed, expected, observed, value=figures.share)


def _bound_check(figures: ReviewFigures, rules: ReviewRules) -> Check:
    severity: Literal["error", "warning"] = "error" if rules.require_lower_bound else "warning"
    confidence = f"{figures.round_confidence * 100:.6g} % confidence ({percent(rules.confidence)} over all rounds)"
    passed = figures.lower_bound >= rules.min_approved
    observed = percent_down(figures.lower_bound) + ("" if passed else f"; {_advice(figures, rules)}")
    expected = f"at least {percent(rules.min_approved)} at {confidence}"
    return Check("lower bound of that share", passed, expected, observed, severity, figures.lower_bound)


def _advice(figures: ReviewFigures, rules: ReviewRules) -> str:
    """How many rows reach the bound: in the next round if the gate failed, otherwise in a larger sample than this."""
    none_wrong, same_share = figures.fresh_rows_none_wrong, figures.fresh_rows_same_share
    left = math.inf if figures.population is None else figures.population - figures.sample
    next_round = figures.round + 1
    if none_wrong is None:
        return "no number of rows can reach it"
    if reaches_threshold(figures.share, figures.lower_bound, rules):
        text = f"a round of {none_wrong} rows with none wrong"
        if same_share is not None and same_share > none_wrong:
            text += f", or {same_share} with the share of wrong rows of this one"
        text += " would show it"
    elif none_wrong > left:
        return (
            f"round {next_round} needs {none_wrong} fresh rows with none wrong to show it, and {left:.0f} are left "
            "that nobody has reviewed: add rows, review all of them, or lower `review.min_approved`"
        )
    else:
        text = f"round {next_round} needs {none_wrong} fresh rows with none wrong to show it"
        if same_share is not None and none_wrong < same_share <= left:
            text += f", or {same_share} with the share of wrong rows of this one"
    return text + (f" (review.max_rows allows {rules.max_rows})" if none_wrong > rules.max_rows else "")


def _changed_check(reviews: Sequence[Review], about: str, earlier: Sequence[GateResult]) -> tuple[Check, ...]:
    """A warning where verdicts were changed after the gate had failed on this same data."""
    failed = [result for result in earlier if not result.passed and result.about == about]
    if not failed:
        return ()
    last = failed[-1]
    later = sum(review.at > last.at for review in reviews)
    expected = f"failed with {last.right} of {last.rows} rows right on {last.at[:10]}"
    observed = f"{later} of {len(reviews)} verdicts are later" if later else "none is later"
    return (Check("verdicts unchanged since the gate failed", not later, expected, observed, "warning", later),)


def _summary(figures: ReviewFigures, rules: ReviewRules) -> str:
    if not figures.rows:
        return f"round {figures.round}: no row has been reviewed yet"
    which, population = ("reviewed", "of all")
    if figures.round > 1:
        which, population = ("fresh", "of those that nobody had reviewed before")
    text = (
        f"round {figures.round}: {figures.right} of {figures.rows} {which} rows are right "
        f"({percent_down(figures.share)}); with {percent(figures.confidence)} confidence over all rounds "
        f"at least {percent_down(figures.lower_bound)} {population}"
    )
    if figures.lower_bound < rules.min_approved:
        text += f" ({_advice(figures, rules)})"
    if figures.gone:
        text += f"; {figures.gone} of them are no longer in the data and count as wrong"
    if figures.recorded:
        text += f"; {figures.recorded} of {figures.verdicts} verdicts are recorded ones, not given in the desk"
    return text
