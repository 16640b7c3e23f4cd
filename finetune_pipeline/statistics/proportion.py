"""Exact bounds of a share. Pure.

Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26,
1934, 404-413.

    clopper_pearson(8, 10, 0.95)        # (0.444, 0.975)
    lower_bound(57, 60, 0.95)           # 0.876: with 95 % confidence at least 87.6 % of all rows are right
"""

from __future__ import annotations


def clopper_pearson(right: int, rows: int, confidence: float) -> tuple[float, float]:
    """The two-sided interval, by scipy's binomtest; (0, 1) without rows."""
    from scipy.stats import binomtest

    if rows == 0:
        return 0.0, 1.0
    ends = binomtest(right, rows).proportion_ci(confidence, "exact")
    return float(ends.low), float(ends.high)


def lower_bound(right: float, rows: float, confidence: float) -> float:
    """The one-sided lower bound: the (1-confidence) quantile of Beta(right, rows-right+1); 0 where nothing is right.

    Equal to `scipy.stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, "exact").low`; this form
    also takes counts that are no whole numbers, which planning needs.
    """
    from scipy.special import betaincinv

    return float(betaincinv(right, rows - right + 1, 1 - confidence)) if right > 0 else 0.0
