"""Power: the rate of rejection, and the smallest gain that a test set can show."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_pipeline.release import paired_tests, power
from finetune_pipeline.release.paired_tests import Paired
from finetune_pipeline.release.relative_change import Rise


def pair(rows: int, wins: int, losses: int, design: float = 1.0) -> Paired:
    return Paired(rows, wins, losses, (1,) * wins + (-1,) * losses, design)


def test_power_is_the_rate_of_rejection() -> None:
    counts = np.random.default_rng(3).multinomial(135, [0.15, 0.05, 0.80], 20_000)
    rejected = (paired_tests.mcnemar(counts[:, 0], counts[:, 1]) <= 0.05).mean()
    assert power.power(135, 0.15, 0.05, 0.05) == pytest.approx(rejected, abs=0.01)


def test_power_under_no_difference_stays_below_alpha() -> None:
    assert 0.01 < power.power(300, 0.1, 0.1, 0.05) <= 0.05
    assert power.power(0, 0.5, 0.1, 0.05) == power.power(100, 0.0, 0.0, 0.05) == 0.0


@pytest.mark.parametrize(("rows", "losses"), [(30, 0), (135, 4), (300, 30)])
def test_the_smallest_gain_has_just_enough_power(rows: int, losses: int) -> None:
    gain = power.smallest_gain(rows, losses, 0.05, 0.8)
    assert gain is not None
    rate = losses / rows
    assert power.power(rows, rate + gain, rate, 0.05) >= 0.8 > power.power(rows, rate + 0.9 * gain, rate, 0.05)


def test_more_rows_show_smaller_gains() -> None:
    gains = [power.smallest_gain(rows, rows // 20, 0.05, 0.8) for rows in (60, 200, 1000)]
    assert gains == sorted(gains, key=lambda g: -(g or 0))
    assert power.smallest_gain(4, 0, 0.05, 0.8) is None
    assert power.smallest_gain(0, 0, 0.05, 0.8) is None


def test_rows_needed_have_the_power() -> None:
    rows = power.rows_needed(pair(135, 13, 9), 0.0, 0.05, 0.8)
    assert rows is not None
    assert rows > 135
    assert power.power(rows, 13 / 135, 9 / 135, 0.05) >= 0.8 > power.power(int(0.95 * rows), 13 / 135, 9 / 135, 0.05)


def test_rows_needed_are_connors_for_large_numbers() -> None:
    """Connor 1987, worked by hand: (1.6449 * sqrt(0.41) + 0.8416 * sqrt(0.4099))^2 / 0.01^2 = 25347."""
    assert power.rows_needed(pair(100, 21, 20), 0.0, 0.05, 0.8) == pytest.approx(25347, abs=2)


def test_groups_need_more_rows_and_equal_models_have_no_number() -> None:
    plain, grouped = (power.rows_needed(pair(135, 13, 9, d), 0.0, 0.05, 0.8) for d in (1.0, 2.0))
    assert plain is not None
    assert grouped == 2 * plain
    assert power.rows_needed(pair(135, 9, 9), 0.0, 0.05, 0.8) is None
    assert power.rows_needed(pair(135, 0, 0), 0.0, 0.05, 0.8) is None
    assert power.rows_needed(pair(100_000, 10_001, 10_000), 0.0, 0.05, 0.8) is None  # more than a million


def test_texts_needed_shrink_with_the_distance_from_the_margin() -> None:
    near = power.texts_needed(Rise(20, 0.08, 0.03, 0.13), 0.10, 0.05, 0.8)
    far = power.texts_needed(Rise(20, 0.06, 0.01, 0.11), 0.10, 0.05, 0.8)
    assert near is not None
    assert far is not None
    assert 20 < far < near
    assert power.texts_needed(Rise(1, 0.05, -np.inf, np.inf), 0.10, 0.05, 0.8) is None


def test_share_rows_needed_agree_with_the_exact_test() -> None:
    from scipy.stats import binom

    rows = power.share_rows_needed(180, 200, 0.95, 0.05, 0.8)
    assert rows is not None
    most = binom.ppf(0.05, rows, 0.95) - 1  # so few valid answers reject 95 % at a risk of 5 %
    assert binom.cdf(most, rows, 0.90) == pytest.approx(0.8, abs=0.08)
    assert power.share_rows_needed(95, 100, 0.95, 0.05, 0.8) is None
