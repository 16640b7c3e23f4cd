"""Drift: the population stability index (PSI) between the test rows and the live traffic, and its noise.

    lengths("length of the prompts", test_lengths, live_lengths)     # Drift(psi=0.31, noise=0.11, ...)
    categories("kinds of answers", test_labels, live_labels)

PSI is the sum over bins of (live - test) * ln(live / test), of the shares in each bin (Lewis, "An Introduction to
Credit Scoring", 1994; Siddiqi, "Credit Risk Scorecards", 2006; it is Jeffreys' divergence). Rules of thumb call 0.1 to
0.25 a shift and ignore the noise: without any drift, PSI / (1/n + 1/m) is about chi-squared distributed with bins - 1
degrees of freedom, n and m being the two numbers of rows (Yurdakul and Naranjo, "Statistical properties of the
population stability index", Journal of Risk Model Validation 14, 2020). With 100 test rows, 50 requests and ten bins
that is 0.27 on average, more than the usual threshold. So drift is a PSI above the declared threshold *and* its noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

BINS = 10  # deciles of the test rows
ROWS_PER_BIN = 10  # with fewer test rows there are fewer bins
RARE = 5  # kinds with fewer test rows are counted together: the noise of a nearly empty bin has no good formula
PRIOR = 0.5  # rows added to each bin of test and live rows (Jeffreys' prior): an empty bin would have infinite PSI
CONFIDENCE = 0.99  # of the noise's upper end: one false alarm per hundred reports and figure
OTHER = "(other)"


@dataclass(frozen=True, slots=True)
class Bin:
    """Shares of the test rows and of the live rows, 0 to 1."""

    name: str
    test: float
    live: float


@dataclass(frozen=True, slots=True)
class Drift:
    """`noise`: the PSI that 99 of 100 such comparisons stay below without drift."""

    name: str
    psi: float
    noise: float
    test_rows: int
    live_rows: int
    bins: tuple[Bin, ...]

    def drifted(self, threshold: float) -> bool:
        return self.psi > max(threshold, self.noise)


def lengths(name: str, test: Sequence[float], live: Sequence[float]) -> Drift:
    """Drift of a number, in bins with about the same number of test rows. PSI 0 and no bins where `test` or `live` is
    empty."""
    import numpy as np

    if not len(test) or not len(live):
        return Drift(name, 0.0, 0.0, len(test), len(live), ())
    count = int(np.clip(len(test) // ROWS_PER_BIN, 2, BINS))
    edges = np.unique(np.quantile(np.asarray(test, float), np.linspace(0, 1, count + 1)[1:-1]))
    test_counts, live_counts = (
        np.bincount(np.digitize(np.asarray(values, float), edges), minlength=len(edges) + 1).tolist()
        for values in (test, live)
    )
    names = [f"below {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges)), f"{edges[-1]:g} and more"]
    return _compare(name, names, test_counts, live_counts)


def categories(name: str, test: Mapping[str, int], live: Mapping[str, int]) -> Drift:
    """Drift of a category, from counts by name. Rare categories, and those without a test row, are counted together."""
    kept = sorted(label for label, rows in test.items() if rows >= RARE)
    test_counts, live_counts = (
        [*(counts.get(label, 0) for label in kept), sum(n for label, n in counts.items() if label not in kept)]
        for counts in (test, live)
    )
    return _compare(name, [*kept, OTHER], test_counts, live_counts)


def _compare(name: str, names: Sequence[str], test: Sequence[int], live: Sequence[int]) -> Drift:
    """PSI of the counts in each bin; bins that are empty in both are left out."""
    import numpy as np
    from scipy.stats import chi2

    bins = [(n, t, s) for n, t, s in zip(names, test, live, strict=True) if t or s]
    rows = sum(test), sum(live)
    if not min(rows):
        return Drift(name, 0.0, 0.0, *rows, ())
    counts = np.array([(t, s) for _, t, s in bins], float)  # [bins, test and live]
    shares = (counts + PRIOR) / (counts + PRIOR).sum(0)
    psi = float(((shares[:, 1] - shares[:, 0]) * np.log(shares[:, 1] / shares[:, 0])).sum())
    noise = float(chi2.ppf(CONFIDENCE, len(bins) - 1)) * (1 / rows[0] + 1 / rows[1]) if len(bins) > 1 else 0.0
    return Drift(name, psi, noise, *rows, tuple(Bin(n, t / rows[0], s / rows[1]) for n, t, s in bins))
