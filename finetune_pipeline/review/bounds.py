"""Compute what reviewed rows show about all rows: confidence per round, and how many rows a round needs. Pure.

    round_confidence(0.95, analysis=2)                  # 0.9875
    rows_needed(0.98, ReviewRules(), analysis=1)        # RowsNeeded(none_wrong=72, same_share=204)

The bound is that of Clopper and Pearson (statistics/proportion.py). It is exact; for a sample drawn without replacement
from few rows it is conservative.

Each evaluation of the gate on a new sample is an interim analysis, as in a sequential test, and one more chance to be
wrong. So each analysis spends half of the error that is left (alpha spending: Lan and DeMets, "Discrete sequential
boundaries for clinical trials", Biometrika 70, 1983, 659-663). With a declared confidence of 1 - a, analysis k has the
confidence 1 - a / 2^k. All analyses together are wrong with a probability of at most a (a/2 + a/4 + ... = a, the union
bound), for any number of analyses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.statistics.proportion import MOST_ROWS, lower_bound


@dataclass(frozen=True, slots=True)
class RowsNeeded:
    """Rows of a new sample that bring the lower bound to the threshold: if none is wrong, and if the observed share is
    right. None: no number of rows does."""

    none_wrong: int | None
    same_share: int | None


def round_confidence(confidence: float, analysis: int) -> float:
    """The confidence of analysis number `analysis` (from 1), so that all analyses together keep the declared one."""
    return 1 - (1 - confidence) * 0.5**analysis


def rows_needed(share: float, rules: ReviewRules, analysis: int) -> RowsNeeded:
    """The rows that the given analysis needs, if none is wrong and if `share` (0 to 1) of them is right."""
    confidence = round_confidence(rules.confidence, analysis)

    def smallest(right: float) -> int | None:
        return _smallest(lambda n: n > 0 and lower_bound(right * n, n, confidence) >= rules.min_approved)

    return RowsNeeded(
        none_wrong=smallest(1.0) if rules.min_approved < 1 else None,
        same_share=smallest(share) if share > rules.min_approved else None,
    )


def _smallest(condition: Callable[[int], bool]) -> int | None:
    """The smallest n >= 0 that meets a condition that all larger n meet as well; None beyond MOST_ROWS."""
    low, high = 0, 1
    if condition(0):
        return 0
    while not condition(high):
        if high == MOST_ROWS:
            return None
        low, high = high, min(2 * high, MOST_ROWS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(middle) else (middle, high)
    return high
