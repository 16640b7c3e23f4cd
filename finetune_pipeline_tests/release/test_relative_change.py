"""Fieller's bounds of a relative rise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from finetune_pipeline.release.relative_change import _fieller, relative_rise


def test_fieller_bounds_invert_the_paired_t_test() -> None:
    random = np.random.default_rng(5)
    before = random.gamma(9, 0.35, 40)
    after = before * (1.04 + 0.05 * random.standard_normal(40))
    rise = relative_rise(list(before), list(after), alpha=0.05, seed=0)
    low, high = _fieller(before, after, 0.05)
    assert stats.ttest_1samp(after - (1 + high) * before, 0, alternative="less").pvalue == pytest.approx(0.05)
    assert stats.ttest_1samp(after - (1 + low) * before, 0, alternative="greater").pvalue == pytest.approx(0.05)
    assert rise.low <= low < rise.rise < high <= rise.high
    assert rise.high == pytest.approx(high, abs=0.01)


def test_a_rise_of_one_text_is_unbounded() -> None:
    assert relative_rise([], [], 0.05, 0).rows == 0
    rise = relative_rise([2.0], [2.1], 0.05, 0)
    assert rise.rise == pytest.approx(0.05)
    assert (rise.low, rise.high) == (-np.inf, np.inf)


def test_a_rise_without_spread_is_certain() -> None:
    rise = relative_rise([2.0, 3.0, 4.0], [2.0, 3.0, 4.0], 0.05, 0)
    assert (rise.low, rise.rise, rise.high) == pytest.approx((0.0, 0.0, 0.0))
