"""Power: what gain a test set of this size could have shown, and how many rows would be needed.

    fewest_rows(gain=0.10, shift=0.0, alpha=0.05, wanted=0.8)       # 66: with fewer rows the decision is INCONCLUSIVE
                                                                    # (harm on general texts still means REJECT)
    smallest_gain(rows=135, losses=4, alpha=0.05, wanted=0.8)       # 0.084: smaller gains have less power
    rows_needed(pair, shift=0.0, alpha=0.05, wanted=0.8)            # 468: rows in all, with 9 won and 4 lost of 135

`wanted` is the declared `release.power`; 80 % is usual (Cohen, "Statistical Power Analysis for the Behavioral
Sciences", 1988). The decision uses `fewest_rows`, which depends on the declaration alone, not on the answers.
The others explain an INCONCLUSIVE.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from finetune_pipeline.release.paired_tests import Paired, mcnemar, score_z
from finetune_pipeline.release.relative_change import Rise
from finetune_pipeline.statistics.proportion import MOST_ROWS

MOST_EXACT = 20_000  # above, the normal approximation is as good as the exact sum, and immediate


def power(rows: int, win_rate: float, loss_rate: float, alpha: float) -> float:
    """Probability that the one-sided exact McNemar test at `alpha` finds a model better that wins and loses at these
    rates.

    Summed over the number of discordant rows, which is itself random: no approximation.
    """
    import numpy as np
    from scipy.stats import binom

    discordant = win_rate + loss_rate
    if rows == 0 or discordant <= 0:
        return 0.0
    counts = np.arange(rows + 1)
    needed = _fewest_wins(alpha, 1 << rows.bit_length())[: rows + 1]
    seen = binom.sf(needed - 1, counts, min(1.0, win_rate / discordant))
    return float((binom.pmf(counts, rows, min(1.0, discordant)) * seen).sum())


@lru_cache(maxsize=8)
def _fewest_wins(alpha: float, most: int) -> Any:
    """For 0 to `most` discordant rows: the fewest wins with a P value of at most `alpha`. The slow part of `power`."""
    import numpy as np
    from scipy.stats import binom

    return binom.isf(alpha, np.arange(most + 1), 0.5) + 1


@lru_cache(maxsize=64)
def fewest_rows(gain: float, shift: float, alpha: float, wanted: float) -> int:
    """The fewest test rows on which the test of a release ("better by more than `shift`") shows a true difference of
    `gain` with probability `wanted`, in the most favorable case: a model that wins `gain` of the rows and loses none.
    With fewer rows no model reaches that probability. At most MOST_ROWS."""
    low, high = 0, 8
    while _shown_without_losses(high, gain, shift, alpha) < wanted:
        low, high = high, 2 * high
        if high > MOST_ROWS:
            return MOST_ROWS
    while high - low > 1:
        middle = (low + high) // 2
        shown = _shown_without_losses(middle, gain, shift, alpha) >= wanted
        low, high = (low, middle) if shown else (middle, high)
    return high


def _shown_without_losses(rows: int, gain: float, shift: float, alpha: float) -> float:
    """Probability that so many of `rows` are won that `paired_tests.p_value` is at most `alpha`."""
    import numpy as np
    from scipy.stats import binom, norm

    wins = np.arange(rows + 1)
    p = np.maximum(mcnemar(wins, 0), norm.sf(score_z(wins, 0, rows, shift)))
    enough = np.flatnonzero(p <= alpha)
    return float(binom.sf(enough[0] - 1, rows, gain)) if len(enough) else 0.0


def smallest_gain(rows: int, losses: int, alpha: float, wanted: float) -> float | None:
    """The smallest true gain that `rows` rows show with probability `wanted`, when as many rows are lost as were
    observed. None when not even the largest possible gain would be shown."""
    loss_rate = losses / rows if rows else 1.0
    low, high = 0.0, 1.0 - 2 * loss_rate
    if high <= 0 or power(rows, loss_rate + high, loss_rate, alpha) < wanted:
        return None
    while high - low > 0.0005:
        middle = (low + high) / 2
        shown = power(rows, loss_rate + middle, loss_rate, alpha) >= wanted
        low, high = (low, middle) if shown else (middle, high)
    return high


def rows_needed(pair: Paired, shift: float, alpha: float, wanted: float) -> int | None:
    """Test rows in all (not more rows) with which the observed rates would show a difference above `shift` (or below
    it, when the observed one is below) with probability `wanted`. None when it equals the shift, or more than a
    million.

    Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43, 1987,
    207-211, with the shift subtracted; for shift 0 refined by the power of the exact test.
    """
    from scipy.stats import norm

    rates = (pair.wins / pair.rows, pair.losses / pair.rows) if pair.rows else (0.0, 0.0)
    discordant, gain = sum(rates), pair.difference
    if discordant <= 0 or gain == shift:
        return None
    spread = norm.isf(alpha) * math.sqrt(discordant) + norm.isf(1 - wanted) * math.sqrt(max(0.0, discordant - gain**2))
    rows = math.ceil((spread / (gain - shift)) ** 2)
    if shift == 0 and rows < MOST_EXACT:
        rows = _exact(rows, max(rates), min(rates), alpha, wanted)
    rows = math.ceil(rows * pair.design)
    return rows if rows <= MOST_ROWS else None


def _exact(start: int, win_rate: float, loss_rate: float, alpha: float, wanted: float) -> int:
    """The least number of rows with enough power, searched from an estimate near it."""
    low, high = 0, start
    while power(high, win_rate, loss_rate, alpha) < wanted:
        low, high = high, math.ceil(high * 1.25) + 1
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, win_rate, loss_rate, alpha) >= wanted else (middle, high)
    return high


def texts_needed(rise: Rise, margin: float, alpha: float, wanted: float) -> int | None:
    """General texts in all with which a rise as observed would be distinguished from `margin` with probability `wanted`
    (by the normal approximation); None when it lies on the margin, its spread is unknown, or it takes more than a
    million."""
    from scipy.stats import norm

    if rise.rows < 2 or rise.rise == margin or not math.isfinite(rise.high - rise.low):
        return None
    error = (rise.high - rise.low) / 2 / norm.isf(alpha)
    rows = rise.rows * ((norm.isf(alpha) + norm.isf(1 - wanted)) * error / (margin - rise.rise)) ** 2
    return max(rise.rows + 1, math.ceil(rows)) if rows <= MOST_ROWS else None


def share_rows_needed(right: int, rows: int, threshold: float, alpha: float, wanted: float) -> int | None:
    """Rows in all with which a share as observed is distinguished from `threshold` with probability `wanted` (normal
    approximation)."""
    from scipy.stats import norm

    share = right / rows if rows else threshold
    if share == threshold:
        return None
    spread = norm.isf(alpha) * math.sqrt(threshold * (1 - threshold))
    spread += norm.isf(1 - wanted) * math.sqrt(share * (1 - share))
    needed = math.ceil((spread / (share - threshold)) ** 2)
    return max(rows + 1, needed) if needed <= MOST_ROWS else None
