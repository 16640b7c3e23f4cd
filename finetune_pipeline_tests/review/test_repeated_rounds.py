"""How often bad data passes the gate when the review is repeated, measured by simulation."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pytest

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Review
from finetune_pipeline.review.bounds import round_confidence, rows_needed
from finetune_pipeline.review.gate import evaluate_review
from finetune_pipeline.review.rounds import GateResult, History, Round, rules_hash
from finetune_pipeline.review.sampling import draw
from finetune_pipeline.statistics.proportion import lower_bound
from finetune_pipeline_tests.artifacts import example
from finetune_pipeline_tests.review.verdicts import verdict

RULES = ReviewRules()


@dataclass
class RepeatedReview:
    """A data set whose steward fixes the rows that the experts rejected, no others, and runs the review again."""

    rows: list[Example]
    bad: set[str]
    rules: ReviewRules
    history: History = field(default_factory=History)
    reviews: dict[tuple[str, str], list[Review]] = field(default_factory=dict)
    previous: Round | None = None

    def run(self, number: int) -> bool:
        about = f"v{number}"
        sample = draw(self.rows, self.history, self.previous, self.reviews, self.rules, about)
        for row in sample.rows:
            self.reviews[row.id, row.content_hash] = [verdict(row, "reject" if row.id in self.bad else "approve")]
        given = [review for row in sample.rows for review in self.reviews[row.id, row.content_hash]]
        passed = evaluate_review(sample.rows, given, self.rules, about, sample.round).passed
        result = GateResult(passed, 0, 0, about, rules_hash(self.rules), "")
        self.history = History(
            (*self.history.rounds, sample.round), {**self.history.gate_results, sample.round.number: (result,)}
        )
        self.previous = sample.round
        rejected = {row.id for row in sample.rows} & self.bad
        self.bad -= rejected
        self.rows = [replace(row, id=f"{row.id}+") if row.id in rejected else row for row in self.rows]
        return passed


def test_bad_data_does_not_pass_in_later_rounds() -> None:
    """80 % are right. When approved rows stayed in the sample, 30 of 30 such data sets passed by the third round."""
    rng = random.Random(3)
    rules = ReviewRules(fraction=0.15)
    for _ in range(30):
        rows = [example(content_text(rng), "q", "a") for _ in range(600)]
        repeated = RepeatedReview(rows, {row.id for row in rng.sample(rows, 120)}, rules)
        assert not any(repeated.run(number) for number in range(5))


def content_text(rng: random.Random) -> str:
    return f"{rng.getrandbits(64):016x}"


@pytest.mark.parametrize(("rows", "fraction"), [(4000, 0.05), (40_000, 0.001)])
def test_the_bound_is_wrong_for_at_most_one_in_twenty_data_sets_over_all_rounds(rows: int, fraction: float) -> None:
    """94.9 % of the rows are right; rejected rows are fixed, and there are up to ten rounds. Without alpha spending the
    same simulation is wrong far more often, so it can detect the difference."""
    rules = ReviewRules(require_lower_bound=True, fraction=fraction, max_rows=2000)
    assert simulated(rows, rules, lambda analysis: round_confidence(rules.confidence, analysis)) <= 0.05
    assert simulated(rows, rules, lambda analysis: rules.confidence) > 0.1


def simulated(rows: int, rules: ReviewRules, confidence: Callable[[int], float], sets: int = 3000) -> float:
    """The share of data sets that pass in some round while fewer than 95 % of the rows are right that nobody had
    reviewed when that round began."""
    rng = np.random.default_rng(20261124)

    @cache
    def passes(right: int, n: int, analysis: int) -> bool:
        return lower_bound(right, n, confidence(analysis)) >= rules.min_approved

    wrongly = 0
    for _ in range(sets):
        unreviewed, bad = rows, round(0.051 * rows)
        for analysis in range(1, 11):
            if bad / unreviewed <= 1 - rules.min_approved:
                break  # enough rows are fixed: passing is right
            n = int(max(rules.fraction * unreviewed, fewest_rows(analysis)))
            wrong = int(rng.hypergeometric(bad, unreviewed - bad, n))
            if passes(n - wrong, n, analysis):
                wrongly += 1
                break
            unreviewed, bad = unreviewed - n + wrong, bad - wrong  # the rejected rows return fixed
    return wrongly / sets


@cache
def fewest_rows(analysis: int) -> int:
    return rows_needed(1.0, RULES, analysis).none_wrong or 0
