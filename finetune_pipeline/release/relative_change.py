"""The relative rise of a mean loss from one model to another on the same texts, with its bounds.

    relative_rise(base_losses, tuned_losses, alpha=0.05, seed=0)     # Rise(rows=60, rise=0.017, low=0.011, high=0.023)

Shares of exact answers are compared in paired_tests.py; the margin is in criteria.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.release.paired_tests import RESAMPLES


@dataclass(frozen=True, slots=True)
class Rise:
    """Relative rise of a mean (0.03: 3 % higher) over `rows` pairs, with one-sided bounds at the same confidence."""

    rows: int
    rise: float
    low: float
    high: float


def relative_rise(before: Sequence[float], after: Sequence[float], alpha: float, seed: int) -> Rise:
    """How much higher the mean of `after` is than that of `before`, pair by pair (losses in nats per token, all
    positive).

    Each bound is the more conservative of two: Fieller's, which inverts the paired t test of mean(after - ratio *
    before) ("Some problems in interval estimation", JRSS B 16, 1954), and the paired bootstrap's, for losses that are
    not normally distributed. Unbounded (inf) with fewer than two pairs, or where the mean of `before` is not
    distinguishable from 0.
    """
    import numpy as np
    from scipy.stats import bootstrap

    x, y = np.asarray(before, float), np.asarray(after, float)
    if len(x) == 0:
        return Rise(0, math.nan, -math.inf, math.inf)
    rise = float(y.mean() / x.mean() - 1)
    if len(x) < 2:
        return Rise(len(x), rise, -math.inf, math.inf)
    low, high = _fieller(x, y, alpha)
    resampled = bootstrap(
        (x, y),
        lambda a, b, axis: b.mean(axis) / a.mean(axis) - 1,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // len(x)),
        confidence_level=1 - 2 * alpha,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Rise(len(x), rise, min(low, float(resampled.low)), max(high, float(resampled.high)))


def _fieller(x: Any, y: Any, alpha: float) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import t

    n = len(x)
    (vxx, vxy), (_, vyy) = np.cov(x, y) / n * float(t.isf(alpha, n - 1)) ** 2
    a, b, c = x.mean() ** 2 - vxx, x.mean() * y.mean() - vxy, y.mean() ** 2 - vyy
    if a <= 0:
        return -math.inf, math.inf
    root = math.sqrt(max(0.0, b * b - a * c))
    return float((b - root) / a - 1), float((b + root) / a - 1)
