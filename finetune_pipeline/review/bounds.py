"""What reviewed rows can show of all rows: exact bounds, round after round, and how many rows it takes. Pure.

    round_confidence(0.95, look=2)                  # 0.9875
    fresh_rows(0.98, ReviewRules(), look=1)         # {"none_wrong": 72, "same_share": 204}

The bound is that of Clopper and Pearson (statistics/proportion.py): exact, never too optimistic; for a sample drawn
without replacement from few rows it is conservative.

A gate that refused and is asked again has one more chance to be wrong. So each decision about a data set spends half of
the error that is left: with a declared confidence of 1 - a, the decision number `look` is taken at 1 - a / 2^look, and
all of them together are wrong with a probability of at most a (a/2 + a/4 + ... = a), however often one tries.
"""

from __future__ import annotations

from collections.abc import Callable

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.statistics.proportion import lower_bound

MOST_ROWS = 10_000_000  # a review that needs more rows than this is no advice


def round_confidence(confidence: float, look: int) -> float:
    """The confidence of decision number `look` (from 1), such that all decisions together keep the declared one."""
    return 1 - (1 - confidence) * 0.5**look


def fresh_rows(share: float, rules: ReviewRules, look: int) -> dict[str, int | None]:
    """How many rows of a new sample bring the lower bound to the threshold: if none of them is wrong (`none_wrong`),
    and if `share` of them is right (`same_share`). None: no number of rows does."""
    confidence = round_confidence(rules.confidence, look)

    def least(right: float) -> int | None:
        return _least(lambda n: n > 0 and lower_bound(right * n, n, confidence) >= rules.min_approved)

    return {
        "none_wrong": least(1.0) if rules.min_approved < 1 else None,
        "same_share": least(share) if share > rules.min_approved else None,
    }


def _least(holds: Callable[[int], bool]) -> int | None:
    """The least n >= 0 for which a condition holds that stays true once it is true; None beyond MOST_ROWS."""
    high = 1
    if holds(0):
        return 0
    while not holds(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
