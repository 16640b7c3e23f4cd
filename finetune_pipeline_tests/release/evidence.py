"""Simulated evaluations for the release's tests: scores as the evaluation writes them, from rates or from counts.

scores({"tuned": [True, ...], "few_shot": [...]})       list[Score]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finetune_pipeline.records import Score
from finetune_pipeline.release.decide import Evidence


def scores(right: Mapping[str, Sequence[bool]], valid: float = 1.0, slices: int = 1) -> list[Score]:
    """A score for each variant and row; the first share `valid` of the rows is valid; slices alternate."""
    return [
        Score(f"r{i:04}", name, bool(bit), i < valid * len(bits), {}, f"s{i % slices}")
        for name, bits in right.items()
        for i, bit in enumerate(bits)
    ]


def bits(rows: int, right: int, start: int = 0) -> list[bool]:
    """`right` of `rows` rows are right, beginning with row `start`."""
    return [(i - start) % rows < right for i in range(rows)]


def losses(texts: int = 60, rise: float = 0.01, spread: float = 0.03) -> list[tuple[float, float]]:
    """Pairs of a loss before and after whose mean rises by `rise` exactly."""
    random = np.random.default_rng(7)
    base = random.gamma(9, 0.35, texts)
    noise = spread * base * random.standard_normal(texts)
    tuned = base * (1 + rise) + (noise - noise.mean() if texts else noise)
    return [(float(b), float(t)) for b, t in zip(base, tuned, strict=True)]


def evidence(
    right: Mapping[str, Sequence[bool]],
    general: Sequence[tuple[float, float]] | None = None,
    valid: float = 1.0,
    slices: int = 1,
    groups: Mapping[str, str | None] | None = None,
    champion: str | None = None,
) -> Evidence:
    measured = losses() if general is None else general
    return Evidence(scores(right, valid, slices), measured, groups or {}, "adapter0", "evaluation0", champion=champion)
