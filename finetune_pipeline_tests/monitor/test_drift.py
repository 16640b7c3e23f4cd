"""The population stability index: its formula, its bins and its noise."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from finetune_pipeline.monitor.drift import OTHER, PRIOR, categories, lengths


def test_psi_is_its_formula() -> None:
    """Two kinds, 60:40 among the test rows and 30:70 live, computed by hand with half a row added to each bin."""
    drift = categories("kinds", {"a": 60, "b": 40}, {"a": 30, "b": 70})
    test, live = (60 + PRIOR) / 101, (30 + PRIOR) / 101
    by_hand = (live - test) * math.log(live / test) + (test - live) * math.log((1 - live) / (1 - test))
    assert drift.psi == pytest.approx(by_hand)
    assert drift.psi == pytest.approx(0.371, abs=0.005)
    assert [(b.name, b.test, b.live) for b in drift.bins] == [("a", 0.6, 0.3), ("b", 0.4, 0.7)]


def test_equal_distributions_have_no_drift() -> None:
    drift = lengths("length", range(100), list(range(100)) * 5)
    assert drift.psi == pytest.approx(0, abs=0.001)
    assert len(drift.bins) == 10
    assert all(b.test == pytest.approx(0.1) for b in drift.bins)


def test_a_new_kind_and_rare_ones_are_counted_together() -> None:
    drift = categories("kinds", {"a": 50, "rare": 2}, {"a": 50, "new": 50})
    assert [b.name for b in drift.bins] == ["a", OTHER]
    assert drift.bins[1].live == 0.5
    assert drift.drifted(0.2)


def test_few_test_rows_have_few_bins_and_ties_no_empty_ones() -> None:
    assert len(lengths("length", range(30), range(30)).bins) == 3
    assert len(lengths("length", [7] * 50, [7] * 50).bins) == 1
    assert not lengths("length", [7] * 50, [7] * 50).drifted(0.01)


def test_without_rows_there_is_no_drift() -> None:
    assert lengths("length", [], [1, 2]).bins == ()
    assert lengths("length", [1, 2], []).psi == 0.0
    assert categories("kinds", {}, {"a": 3}).bins == ()


@pytest.mark.parametrize("requests", [50, 200, 2000])
def test_without_drift_few_reports_raise_an_alarm(requests: int) -> None:
    """The rule of thumb alone (PSI above 0.2) would do so in most reports on 50 requests."""
    random, alarms, naive, runs = np.random.default_rng(requests), 0, 0, 200
    labels = [str(i) for i in range(10)]
    for _ in range(runs):
        number = lengths("length", random.gamma(4, 20, 100).tolist(), random.gamma(4, 20, requests).tolist())
        test, live = (Counter(random.choice(labels, n).tolist()) for n in (100, requests))
        kind = categories("kinds", test, live)
        alarms += number.drifted(0.2) + kind.drifted(0.2)
        naive += number.psi > 0.2
    assert alarms / (2 * runs) < 0.025
    assert requests > 50 or naive / runs > 0.5


def test_drift_is_detected_with_enough_requests() -> None:
    random = np.random.default_rng(1)
    drift = lengths("length", random.gamma(4, 20, 135).tolist(), random.gamma(4, 35, 200).tolist())
    assert drift.drifted(0.2)
    assert drift.psi > drift.noise
