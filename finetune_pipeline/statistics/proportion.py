"""Compute exact (Clopper-Pearson) confidence bounds of a proportion. Pure.

    clopper_pearson(8, 10, 0.95)        # (0.444, 0.975)
    lower_bound(57, 60, 0.95)           # 0.876: with 95 % confidence at least 87.6 % of all rows are right

Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26, 1934, 404-413.
"""

from __future__ import annotations

MOST_ROWS = 1_000_000  # a number of rows needed beyond this is no useful advice


def clopper_pearson(successes: int, rows: int, confidence: float) -> tuple[float, float]:
    """The two-sided interval, by scipy's binomtest; (0, 1) without rows."""
    from scipy.stats import binomtest

    if rows == 0:
        return 0.0, 1.0
    ends = binomtest(successes, rows).proportion_ci(confidence, "exact")
    return float(ends.low), float(ends.high)


def lower_bound(successes: float, rows: float, confidence: float) -> float:
    """The one-sided lower bound: the (1 - confidence) quantile of Beta(successes, rows - successes + 1); 0 without
    successes.

    Equal to `scipy.stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, "exact").low`. This form
    also takes counts that are not whole numbers, which planning a sample needs.
    """
    from scipy.special import betaincinv

    return float(betaincinv(successes, rows - successes + 1, 1 - confidence)) if successes > 0 else 0.0
