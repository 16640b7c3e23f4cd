"""Against published values and against scipy's own ways to the same figure."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from finetune_pipeline.release import paired_tests
from finetune_pipeline.release.paired_tests import Paired


def pair(rows: int, wins: int, losses: int) -> Paired:
    return Paired(rows, wins, losses, (1,) * wins + (-1,) * losses)


@pytest.mark.parametrize(
    ("wins", "losses", "published"),
    [
        (7, 1, 0.0703),  # Bentur et al. 2009, in Fagerland, Lydersen and Laake 2013, table 4
        (16, 6, 0.0525),  # Cavo et al. 2012, ibid.
        (12, 2, 0.0129),  # Armitage and Berry 1994, p. 127
    ],
)
def test_exact_mcnemar_has_the_published_values(wins: int, losses: int, published: float) -> None:
    assert paired_tests.mcnemar(wins, losses, "two-sided") == pytest.approx(published, abs=5e-5)
    assert paired_tests.mcnemar(losses, wins, "two-sided") == pytest.approx(published, abs=5e-5)
    one_sided = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    assert paired_tests.mcnemar(wins, losses) == pytest.approx(one_sided)
    assert paired_tests.mcnemar(losses, wins, "less") == pytest.approx(one_sided)


def test_mcnemar_accepts_arrays_and_no_discordant_rows() -> None:
    result = paired_tests.mcnemar(np.array([0, 5, 0]), np.array([0, 0, 5]))
    assert result == pytest.approx([1.0, 0.5**5, 1.0])


def test_tango_interval_has_the_published_values() -> None:
    """Airway hyper-responsiveness in 21 children, Fagerland, Lydersen and Laake 2014: -0.517 to -0.026."""
    assert paired_tests.difference_bounds(pair(21, 1, 7), 0.95) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_the_score_statistic_at_zero_is_mcnemars() -> None:
    assert paired_tests.score_z(16, 6, 161, 0.0) == pytest.approx((16 - 6) / np.sqrt(16 + 6))


def test_tango_interval_at_the_edges() -> None:
    low, high = paired_tests.difference_bounds(pair(10, 10, 0), 0.9)
    assert 0 < low < 1
    assert high == 1.0
    z2 = stats.norm.isf(0.05) ** 2  # no row differs: the bound has a closed form
    assert paired_tests.difference_bounds(pair(25, 0, 0), 0.9) == pytest.approx((-z2 / (25 + z2), z2 / (25 + z2)))
    assert paired_tests.difference_bounds(pair(0, 0, 0), 0.9) == (-1.0, 1.0)


def test_tango_bounds_are_those_of_the_mirrored_comparison() -> None:
    comparison = pair(80, 14, 5)
    low, high = paired_tests.difference_bounds(comparison, 0.9)
    assert paired_tests.difference_bounds(paired_tests.mirrored(comparison), 0.9) == pytest.approx((-high, -low))


def test_sign_flip_with_single_rows_is_mcnemar() -> None:
    assert paired_tests.sign_flip([1] * 9 + [-1] * 3) == pytest.approx(float(paired_tests.mcnemar(9, 3)))


@pytest.mark.parametrize("sums", [[3, -1, 2, 2], [1, 1, -4], [5], [-2, -2], [2, 1, -1, 3, -2, 1]])
def test_sign_flip_counts_every_assignment_of_signs(sums: list[int]) -> None:
    totals = [sum(s * abs(v) for s, v in zip(signs, sums, strict=True)) for signs in product((1, -1), repeat=len(sums))]
    assert paired_tests.sign_flip(sums) == pytest.approx(np.mean([t >= sum(sums) for t in totals]))


def test_sign_flip_agrees_with_scipys_permutation_test() -> None:
    sums = [3, -1, 2, 2, 1, 1, -2, 4, 1]
    result = stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", alternative="greater", n_resamples=np.inf
    )
    assert paired_tests.sign_flip(sums) == pytest.approx(result.pvalue)


def test_pairing_counts_rows_and_groups() -> None:
    first = {"a": True, "b": True, "c": False, "d": True, "e": True}
    second = {"a": False, "b": False, "c": True, "d": True, "e": False}
    assert paired_tests.paired(first, second) == Paired(5, 3, 1, (1, 1, -1, 1), 1.0)
    grouped = paired_tests.paired(first, second, {"a": "x", "b": "x", "c": "y", "e": "y"})
    assert grouped.sums == (2,)  # c and e are one group and cancel out
    assert paired_tests.paired(first, second, {"a": "x", "b": "x"}).design > 1
    assert grouped.design == pytest.approx((4 + 4 + 1) / 5)  # too few to tell: taken as fully correlated


def test_groups_do_not_increase_certainty() -> None:
    rows = [f"{n}{suffix}" for n in range(12) for suffix in "ab"]
    first = {row: row.endswith("a") for row in rows}  # each group wins one row and loses one
    second = {row: not right for row, right in first.items()}
    assert paired_tests.paired(first, second, {row: row[:-1] for row in rows}).design == 1.0


@pytest.mark.parametrize(("groups", "size", "margin"), [(66, 20, 0.03), (70, 10, 0.02), (66, 20, 0.01)])
def test_rows_of_one_group_are_fully_correlated_where_few_groups_differ(groups: int, size: int, margin: float) -> None:
    """Whole customers are lost as often as the margin allows: to be passed in at most 5 % of the test sets."""
    rng, passed, sets = np.random.default_rng(1), 0, 200
    for _ in range(sets):
        lost = rng.random(groups) < margin
        rows = {f"{g}/{n}": bool(lost[g]) for g in range(groups) for n in range(size)}
        pair = paired_tests.paired(dict.fromkeys(rows, False), rows, {row: row.split("/")[0] for row in rows})
        passed += paired_tests.p_value(pair, -margin) <= 0.05
    assert passed <= 0.05 * sets


def test_different_rows_are_an_error() -> None:
    with pytest.raises(KeyError):
        paired_tests.paired({"a": True}, {"b": True})
    with pytest.raises(KeyError):
        paired_tests.paired({"a": True}, {"a": True, "b": True})


def test_a_group_named_like_a_row_is_not_that_row() -> None:
    result = paired_tests.paired({"a": True, "b": True, "c": True}, dict.fromkeys("abc", False), {"b": "a", "c": "a"})
    assert sorted(result.sums) == [1, 2]


def test_groups_widen_the_interval() -> None:
    """Eight customers with three rows each, all won or all lost together: 18 rows to 6 are 6 customers to 2."""
    rows = [f"{g}{i}" for g in range(8) for i in range(3)]
    first = {row: int(row[0]) < 6 for row in rows}
    second = {row: not right for row, right in first.items()}
    alone, together = (
        paired_tests.paired(first, second),
        paired_tests.paired(first, second, {row: row[0] for row in rows}),
    )
    assert paired_tests.p_value(alone) < 0.05 < paired_tests.p_value(together)
    assert together.design == pytest.approx(3)
    assert paired_tests.difference_bounds(together, 0.9)[0] < paired_tests.difference_bounds(alone, 0.9)[0]


def test_p_value_against_a_shift() -> None:
    comparison = pair(200, 60, 10)
    assert (
        paired_tests.p_value(comparison)
        < paired_tests.p_value(comparison, 0.10)
        < 0.05
        < paired_tests.p_value(comparison, 0.22)
    )
    low, _ = paired_tests.difference_bounds(comparison, 0.90)
    assert paired_tests.p_value(comparison, low) == pytest.approx(0.05)  # test and bound say the same


def test_bootstrap_agrees_with_scipys_on_rows() -> None:
    values = np.array([1] * 30 + [-1] * 10 + [0] * 60)
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="percentile", rng=np.random.default_rng(1)
    )
    ours = paired_tests.bootstrap_bounds(pair(100, 30, 10), 0.9, seed=1)
    assert ours == pytest.approx(tuple(result.confidence_interval), abs=0.02)
    assert ours == paired_tests.bootstrap_bounds(pair(100, 30, 10), 0.9, seed=1)


def test_holm_steps_down() -> None:
    assert paired_tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert paired_tests.holm([]) == []
    assert paired_tests.holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("rows", [66, 113, 150, 200])
@pytest.mark.parametrize("win_rate", [0.0, 0.02, 0.1])
def test_a_loss_of_the_margin_is_excluded_in_one_of_twenty_sets_at_most(rows: int, win_rate: float) -> None:
    """Summed over all outcomes: without wins the score test alone would be wrong in 5.5 % of the sets of 150 rows."""
    wrong, margin = 0.0, 0.05
    for losses in range(rows + 1):
        chance = stats.binom.pmf(losses, rows, win_rate + margin)
        if chance < 1e-6:
            continue
        wins = range(rows - losses + 1)
        least = next((w for w in wins if paired_tests.p_value(pair(rows, w, losses), -margin) <= 0.05), None)
        if least is not None:
            wrong += chance * stats.binom.sf(least - 1, rows - losses, win_rate / (1 - win_rate - margin))
    assert wrong <= (0.05 if win_rate == 0 else 0.052)
