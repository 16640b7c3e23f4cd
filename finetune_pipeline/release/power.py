"""What a test set of this size could have shown, and how many rows it would take. Pure.

    smallest_gain(rows=135, losses=4, alpha=0.05)     # 0.084: smaller gains are missed more than one time in five
    rows_needed(pair, shift=0.0, alpha=0.05)          # 468: rows in all, with 9 won and 4 lost of 135

An INCONCLUSIVE without these figures would be a shrug. They plan, they decide nothing: `POWER` is the usual chance of
80 % to see what is there (Cohen, "Statistical Power Analysis for the Behavioral Sciences", 1988).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from finetune_pipeline.release.rise import Rise
from finetune_pipeline.release.statistics import Paired

POWER = 0.8
MOST_ROWS = 1_000_000  # beyond this, "more rows" is no advice
MOST_EXACT = 20_000  # above, the normal approximation is as good as the exact sum, and instant


def power(rows: int, win_rate: float, loss_rate: float, alpha: float) -> float:
    """Chance that the one-sided exact McNemar test at `alpha` sees a model that wins and loses rows at these rates.

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
    """For 0 to `most` discordant rows: the fewest wins with a P value of at most `alpha`. The slow part of a power."""
    import numpy as np
    from scipy.stats import binom

    return binom.isf(alpha, np.arange(most + 1), 0.5) + 1


def smallest_gain(rows: int, losses: int, alpha: float) -> float | None:
    """The smallest true gain that `rows` rows show with 80 % chance, when as many rows are lost as were seen to be.
    None when not even the largest possible gain would be shown."""
    loss_rate = losses / rows if rows else 1.0
    low, high = 0.0, 1.0 - 2 * loss_rate
    if high <= 0 or power(rows, loss_rate + high, loss_rate, alpha) < POWER:
        return None
    while high - low > 0.0005:
        middle = (low + high) / 2
        shown = power(rows, loss_rate + middle, loss_rate, alpha) >= POWER
        low, high = (low, middle) if shown else (middle, high)
    return high


def rows_needed(pair: Paired, shift: float, alpha: float) -> int | None:
    """Test rows in all (not more rows) with which the observed rates would show a difference above `shift` (or below
    it, when the observed one is below) with 80 % chance. None when it equals the shift, or more than a million.

    Connor, "Sample size for testing differences in proportions for the paired-sample design", Biometrics 43, 1987,
    207-211, with the shift subtracted; for shift 0 then moved to where the exact test's power is.
    """
    from scipy.stats import norm

    rates = (pair.wins / pair.rows, pair.losses / pair.rows) if pair.rows else (0.0, 0.0)
    discordant, gain = sum(rates), pair.difference
    if discordant <= 0 or gain == shift:
        return None
    spread = norm.isf(alpha) * math.sqrt(discordant) + norm.isf(1 - POWER) * math.sqrt(max(0.0, discordant - gain**2))
    rows = math.ceil((spread / (gain - shift)) ** 2)
    if shift == 0 and rows < MOST_EXACT:
        rows = _exact(rows, max(rates), min(rates), alpha)
    rows = math.ceil(rows * pair.design)
    return rows if rows <= MOST_ROWS else None


def _exact(start: int, win_rate: float, loss_rate: float, alpha: float) -> int:
    """The least number of rows with enough power, from an estimate that is near it."""
    low, high = 0, start
    while power(high, win_rate, loss_rate, alpha) < POWER:
        low, high = high, math.ceil(high * 1.25) + 1
    while high - low > max(1, high // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, win_rate, loss_rate, alpha) >= POWER else (middle, high)
    return high


def texts_needed(rise: Rise, margin: float, alpha: float) -> int | None:
    """General texts in all with which a rise as observed would be told from `margin` with 80 % chance (by the normal
    approximation); None when it lies on the margin, nothing is known of its spread, or it takes more than a million."""
    from scipy.stats import norm

    if rise.rows < 2 or rise.rise == margin or not math.isfinite(rise.high - rise.low):
        return None
    error = (rise.high - rise.low) / 2 / norm.isf(alpha)
    rows = rise.rows * ((norm.isf(alpha) + norm.isf(1 - POWER)) * error / (margin - rise.rise)) ** 2
    return max(rise.rows + 1, math.ceil(rows)) if rows <= MOST_ROWS else None


def share_rows_needed(right: int, rows: int, bar: float, alpha: float) -> int | None:
    """Rows in all with which a share as observed would be told from `bar` with 80 % chance (normal approximation)."""
    from scipy.stats import norm

    share = right / rows if rows else bar
    if share == bar:
        return None
    spread = norm.isf(alpha) * math.sqrt(bar * (1 - bar)) + norm.isf(1 - POWER) * math.sqrt(share * (1 - share))
    needed = math.ceil((spread / (share - bar)) ** 2)
    return max(rows + 1, needed) if needed <= MOST_ROWS else None
