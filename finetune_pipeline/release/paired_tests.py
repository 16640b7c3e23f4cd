"""Tests and intervals for two models that answered the same rows.

    pair = paired(tuned, few_shot)                 # Paired(rows=161, wins=16, losses=6, ...)
    p_value(pair)                                  # 0.026: one-sided exact McNemar test
    difference_bounds(pair, confidence=0.90)       # (0.015, 0.113): Tango's score interval

The comparison is row by row: rows that both models have right, or both wrong, carry no information on which is better.
Everything that scipy has is scipy's; Tango's interval and Holm's step-down are not in it and are defined here. Losses
on general texts are compared in relative_change.py; the number of rows needed is in power.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 4999  # of a bootstrap; its 5 % quantile then has a standard error of 0.3 percentage points
MIN_DIFFERING_GROUPS = 10  # for an estimate of the design effect; docs/decisions.md has the simulation
EDGE = 1 - 1e-9  # a difference of proportions cannot reach 1 in the score test: its variance vanishes there


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same `rows`: `wins` are right with the first only, `losses` with the second only.

    `sums`: wins minus losses of each group of dependent rows (a customer, a thread; a row alone is its own group),
    zeros left out. `design`: by what factor the groups make the difference's variance larger than that of as
    many independent rows (1 without groups; Rao and Scott, "A simple method for the analysis of clustered binary data",
    Biometrics 48, 1992, 577-585).
    """

    rows: int
    wins: int
    losses: int
    sums: tuple[int, ...]
    design: float = 1.0

    @property
    def difference(self) -> float:
        return (self.wins - self.losses) / self.rows if self.rows else 0.0


def paired(
    first: Mapping[str, bool], second: Mapping[str, bool], groups: Mapping[str, str | None] | None = None
) -> Paired:
    """Compare two models by row id. Both have to hold the same ids (KeyError otherwise). `groups`: row id -> the
    group of rows that are not independent; counted as if they were independent, chance would look like evidence."""
    differences = {row: int(right) - int(second[row]) for row, right in first.items()}
    if len(second) != len(differences):
        raise KeyError(f"{len(differences)} rows against {len(second)}: a paired comparison needs the same rows")
    members_of: defaultdict[tuple[bool, str], list[int]] = defaultdict(list)
    for row, value in differences.items():
        group = (groups or {}).get(row)
        members_of[(False, row) if group is None else (True, group)].append(value)
    values = list(differences.values())
    sums = tuple(total for members in members_of.values() if (total := sum(members)))
    return Paired(len(values), values.count(1), values.count(-1), sums, _design(list(members_of.values())))


def _design(groups: Sequence[Sequence[int]]) -> float:
    """Variance of the difference with groups over that without; never below 1, so that groups cannot increase
    certainty.

    Where fewer than MIN_DIFFERING_GROUPS groups have a row that differs, the correlation within groups cannot be
    estimated: the rows of a group then count as fully correlated, with the design effect of groups of these sizes
    (Kish, "Survey sampling", 1965).
    """
    rows = sum(len(group) for group in groups)
    if sum(any(group) for group in groups) < MIN_DIFFERING_GROUPS:
        return sum(len(group) ** 2 for group in groups) / rows if rows else 1.0
    mean = sum(map(sum, groups)) / rows if rows else 0.0
    plain = sum((value - mean) ** 2 for group in groups for value in group)
    grouped = sum((sum(group) - len(group) * mean) ** 2 for group in groups)
    return max(1.0, grouped / plain) if plain > 0 else 1.0


def mcnemar(wins: Any, losses: Any, alternative: str = "greater") -> Any:
    """P value of the exact McNemar test: under the null a discordant row is a win with probability 1/2.

    "greater": is the first model better? "less": is it worse? "two-sided": either. Numbers, or arrays of one shape.
    McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 12, 1947.
    """
    import numpy as np
    from scipy.stats import binom

    if alternative == "two-sided":
        return np.minimum(1.0, 2 * np.minimum(mcnemar(wins, losses), mcnemar(losses, wins)))
    more, fewer = (wins, losses) if alternative == "greater" else (losses, wins)
    return binom.sf(np.asarray(more) - 1, np.asarray(more) + np.asarray(fewer), 0.5)


def sign_flip(sums: Sequence[int]) -> float:
    """One-sided exact P value when whole groups, not rows, are independent: each group's sum is equally likely to have
    either sign under the null, and the distribution of the total is computed, not sampled. With groups of one row it is
    the exact McNemar test. Cost: groups times rows."""
    import numpy as np

    sizes = [abs(value) for value in sums]
    if set(sizes) <= {1}:
        return float(mcnemar(sum(value > 0 for value in sums), sum(value < 0 for value in sums)))
    chances = np.ones(1)  # chances[x]: probability that the groups with a plus sign hold x rows
    for size in sizes:
        empty = np.zeros(size)
        chances = 0.5 * (np.concatenate([chances, empty]) + np.concatenate([empty, chances]))
    least = (sum(sums) + sum(sizes)) // 2
    return float(min(1.0, chances[least:].sum()))


def score_z(wins: Any, losses: Any, rows: Any, shift: float) -> Any:
    """Tango's score statistic for the null "the difference is `shift`"; about standard normal under it, also in small
    samples. Numbers or arrays; -1 < shift < 1. With shift 0 it is McNemar's (wins - losses) / sqrt(wins + losses).

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design",
    Statistics in Medicine 17, 1998, 891-908; recommended over Wald's interval by Fagerland, Lydersen and Laake,
    "Recommended tests and confidence intervals for paired binomial proportions", ibid. 33, 2014, 2850-2875.
    """
    import numpy as np

    wins, losses, rows = np.asarray(wins, float), np.asarray(losses, float), np.asarray(rows, float)
    a, b = 2 * rows, (2 * rows - wins + losses) * shift - wins - losses
    c = -losses * shift * (1 - shift)
    loss_rate = (np.sqrt(np.maximum(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # its maximum likelihood under the null
    spread = np.sqrt(np.maximum(rows * (2 * loss_rate + shift * (1 - shift)), 0.0))
    distance = wins - losses - rows * shift
    return np.divide(distance, spread, out=np.zeros_like(distance), where=spread > 0)


def difference_bounds(pair: Paired, confidence: float) -> tuple[float, float]:
    """Tango's interval of the difference of two paired proportions, at two-sided `confidence` (each end is a one-sided
    bound at (1 + confidence) / 2). Groups shrink the rows by the design effect. (-1, 1) without rows."""
    from scipy.stats import norm

    if pair.rows == 0:
        return -1.0, 1.0
    z = float(norm.isf((1 - confidence) / 2))
    return _score_root(pair, z), _score_root(pair, -z)


def _score_root(pair: Paired, z: float) -> float:
    """The shift at which the score statistic is z; the statistic decreases with the shift."""
    from scipy.optimize import brentq

    counts = (pair.wins / pair.design, pair.losses / pair.design, pair.rows / pair.design)

    def above(shift: float) -> float:
        return float(score_z(*counts, shift)) - z

    if above(-EDGE) <= 0:
        return -1.0
    return 1.0 if above(EDGE) >= 0 else float(brentq(above, -EDGE, EDGE, xtol=1e-10))


def p_value(pair: Paired, shift: float = 0.0) -> float:
    """One-sided P value for "the first model is better by more than `shift`" (which may be negative).

    The larger of the score test against `shift` and an exact one: the score test alone is slightly liberal where few
    rows differ. Where shift >= 0 that is the exact test against 0. Below 0 no exact test is known without a search over
    all rates; but where no row is won, the losses alone are binomial, and the p-value is that of their exact test
    against -shift, if larger.
    """
    from scipy.stats import beta, norm

    if pair.rows == 0:
        return 1.0
    counts = (pair.wins / pair.design, pair.losses / pair.design, pair.rows / pair.design)
    score = float(norm.sf(score_z(*counts, shift)))
    if shift >= 0:
        return max(score, sign_flip(pair.sums))
    wins, losses, rows = counts
    return max(score, float(beta.sf(-shift, losses + 1, rows - losses))) if wins == 0 and losses < rows else score


def mirrored(pair: Paired) -> Paired:
    """The comparison with both models swapped."""
    return Paired(pair.rows, pair.losses, pair.wins, tuple(-value for value in pair.sums), pair.design)


def bootstrap_bounds(pair: Paired, confidence: float, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the difference over rows, reported beside Tango's.

    A row's difference is 1, 0 or -1, so that resampling rows is sampling the three counts. Groups shrink the rows by
    the design effect. Where no row differs the interval has zero width: this false certainty is why no decision uses
    it.
    """
    import numpy as np

    if pair.rows == 0:
        return -1.0, 1.0
    effective = max(1, round(pair.rows / pair.design))
    shares = np.array([pair.wins, pair.losses, pair.rows - pair.wins - pair.losses]) / pair.rows
    drawn = np.random.default_rng(seed).multinomial(effective, shares, RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / effective, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for multiple testing, in the given order (Holm, "A simple sequentially rejective
    multiple test procedure", Scandinavian Journal of Statistics 6, 1979): reject those at or below alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, worst = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted
