"""Measure how far reviewers agree: share of equal decisions and Cohen's kappa, for each two reviewers. Pure.

    agreement(rows, reviews) → [Agreement(reviewers=["anna", "bob"], rows=20, agreement=0.95, kappa=0.64)]

Source: Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20, 1960.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from finetune_pipeline.records import Example, Review


@dataclass(frozen=True, slots=True)
class Agreement:
    """Two reviewers with `rows` in common: the share of equal decisions (0 to 1), and Cohen's kappa (agreement beyond
    chance, at most 1). `kappa` is None where both always decided the same: then it is not defined."""

    reviewers: list[str]
    rows: int
    agreement: float
    kappa: float | None


def agreement(rows: Sequence[Example], reviews: Mapping[str, Sequence[Review]]) -> list[Agreement]:
    """The agreement of each two reviewers, sorted by name; `reviews` by row id."""
    decisions: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        for a, b in combinations(sorted(reviews[row.id], key=lambda review: review.reviewer), 2):
            decisions[a.reviewer, b.reviewer].append((a.decision, b.decision))
    return [
        Agreement(list(names), len(pairs), sum(a == b for a, b in pairs) / len(pairs), _kappa(pairs))
        for names, pairs in sorted(decisions.items())
    ]


def _kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    first, second = zip(*pairs, strict=True)
    if len(set(first) | set(second)) == 1:
        return None
    return float(cohen_kappa_score(first, second))
