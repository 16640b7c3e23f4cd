"""Exact bounds of a proportion, compared with published values and with scipy."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from finetune_pipeline.statistics.proportion import clopper_pearson, lower_bound


def test_clopper_pearson_equals_the_published_values() -> None:
    assert clopper_pearson(0, 10, 0.95) == pytest.approx((0.0, 0.3085), abs=5e-5)
    assert clopper_pearson(8, 10, 0.95) == pytest.approx((0.4439, 0.9748), abs=5e-5)
    assert clopper_pearson(0, 0, 0.95) == (0.0, 1.0)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_lower_bound_equals_scipys(confidence: float) -> None:
    for n in (1, 7, 20, 60, 500):
        for k in {0, 1, n // 2, n - 1, n}:
            expected = binomtest(k, n, alternative="greater").proportion_ci(confidence, method="exact").low
            assert lower_bound(k, n, confidence) == pytest.approx(expected, abs=1e-12), (k, n)
