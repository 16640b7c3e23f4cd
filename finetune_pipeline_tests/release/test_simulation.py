"""Simulation: with no true difference, the decision promotes in at most 5 % of the test sets.

The rule for exact match is the part that could promote by chance; it runs vectorized over thousands of test sets (as in
`benchmarks/decision.py`, which prints the whole table), and some of the sets go through `decide` itself.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from finetune_pipeline.config import Release
from finetune_pipeline.release import paired_tests
from finetune_pipeline.release.relative_change import relative_rise
from finetune_pipeline_tests.benchmark import benchmark as load


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load("decision")


@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("rate", [0.15, 0.5])
@pytest.mark.parametrize("baselines", [1, 3])
def test_no_better_than_the_best_baseline(benchmark: ModuleType, rows: int, rate: float, baselines: int) -> None:
    sets = 2000
    right = benchmark.simulated_outcomes(
        np.random.default_rng(rows + baselines), sets, rows, [rate] * (1 + baselines), 0.5
    )
    promote, _, bare = benchmark.superiority_rule(right)
    benchmark.assert_same_as_decide(right, promote)
    assert promote.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
    assert bare.mean() > 0.15  # the bare comparison of means promotes this often


@pytest.mark.parametrize("rows", [100, 400])
@pytest.mark.parametrize("behind", [(0.05, 0.05), (0.05, -0.1), (-0.1, 0.05)])
def test_a_true_loss_of_the_margin_against_an_opponent(
    benchmark: ModuleType, rows: int, behind: tuple[float, float]
) -> None:
    """The candidate beats the prompt by far, and is truly worse than the live version, the classical model, or both."""
    sets = 2000
    rates = [0.8, 0.8 + behind[0], 0.8 + behind[1], 0.3]
    right = benchmark.simulated_outcomes(np.random.default_rng(rows), sets, rows, rates, 0.5)
    beaten = benchmark.superiority_rule(right[[0, 3]])[0]
    promote = beaten & benchmark.non_inferiority_rule(right[:3])
    benchmark.assert_same_as_decide(right[[0, 3]], promote, right[1:3])
    assert promote.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
    assert beaten.mean() > 0.95  # against the prompt alone it is promoted


def test_a_large_gain_is_found(benchmark: ModuleType) -> None:
    right = benchmark.simulated_outcomes(np.random.default_rng(1), 1000, 300, [0.65, 0.5, 0.5, 0.5], 0.5)
    assert benchmark.superiority_rule(right)[0].mean() > 0.95


def test_grouped_rows_do_not_promote_by_chance(benchmark: ModuleType) -> None:
    """Rows in groups of six: McNemar's test on rows would be wrong in more than 10 % of the sets."""
    line = benchmark.groups(200, sizes=(6,))[0]
    assert line["ours"] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert line["rows_as_if_independent"] > 0.08


def test_a_lost_general_ability_passes_in_at_most_5_percent() -> None:
    random, passed, sets = np.random.default_rng(2), 0, 120
    for _ in range(sets):
        base = random.gamma(9, 0.35, 40)
        tuned = base * (1.10 + 0.10 * random.standard_normal(40))
        passed += relative_rise(list(base), list(tuned), 0.05, 0).high <= Release().general_margin
    assert passed / sets <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)


def test_a_slice_at_the_margin_is_called_harmed_in_at_most_5_percent() -> None:
    """True loss equal to the margin, ten slices of 12 rows: any of them called harmed, after Holm, in 5 % at most."""
    random, sets = np.random.default_rng(3), 150
    counts = random.multinomial(12, [0.10, 0.20, 0.70], (sets, 10))
    wrong = 0
    for slices in counts:
        pairs = [paired_tests.Paired(12, int(w), int(c), (1,) * int(w) + (-1,) * int(c)) for w, c, _ in slices]
        wrong += min(paired_tests.holm([paired_tests.p_value(paired_tests.mirrored(p), 0.10) for p in pairs])) <= 0.05
    assert wrong / sets <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / sets)
