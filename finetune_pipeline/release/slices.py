"""The criterion on slices: no slice of the test rows may be harmed, even if the mean is not.

slices_unharmed("few_shot", tuned, few_shot, {"r1": "refund", ...}, groups, rules)       # two findings
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from finetune_pipeline.config import Release
from finetune_pipeline.records import Check
from finetune_pipeline.release import paired_tests, power
from finetune_pipeline.release.figures import (
    Finding,
    Groups,
    Outcomes,
    SliceComparison,
    SlicesFigures,
    SliceState,
    UndecidedSlicesFigures,
)
from finetune_pipeline.release.formatting import between_points, points
from finetune_pipeline.release.paired_tests import Paired


def slices_unharmed(
    against: str, tuned: Outcomes, baseline: Outcomes, slices: Mapping[str, str], groups: Groups, rules: Release
) -> tuple[Finding, Finding]:
    """Two findings: is a slice shown to be harmed (it blocks), and which slices cannot exclude harm (a warning).
    `slices`: row id -> slice, "" for none.

    A slice is harmed when it loses more than `slice_margin` against the best prompted baseline: score test of that
    margin and exact test, one-sided, Holm's step-down over the slices with at least `min_slice_rows` rows.

    Non-inferiority in each slice, as for general ability, would need too many rows: a slice of 10 rows in which both
    models give the very same answers still leaves a loss of up to 21 points possible; it takes 25 such rows, or 100 to
    200 with the usual disagreement, to exclude 10 points. Such a gate would pass nothing, or make people declare fewer
    slices. So a slice blocks on evidence of harm, and a slice that cannot exclude harm is named, with the rows that
    would decide, for people to consider.
    """
    by_slice: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for row, right in tuned.items():
        by_slice[slices[row]][row] = right
    named = {name: rows for name, rows in sorted(by_slice.items()) if name}
    pairs = {
        name: paired_tests.paired(rows, {row: baseline[row] for row in rows}, groups) for name, rows in named.items()
    }
    tested = [name for name, pair in pairs.items() if pair.rows >= rules.min_slice_rows]
    p_values = [paired_tests.p_value(paired_tests.mirrored(pairs[name]), rules.slice_margin) for name in tested]
    adjusted = dict(zip(tested, paired_tests.holm(p_values), strict=True))
    table = {name: _slice(pair, adjusted.get(name), named[name], rules) for name, pair in pairs.items()}
    return _harmed(against, tested, table, rules), _undecided(tested, table, rules)


def _slice(pair: Paired, adjusted: float | None, tuned: Outcomes, rules: Release) -> SliceComparison:
    """`adjusted`: the p-value of harm after Holm's correction; None where the slice has too few rows."""
    low, high = paired_tests.difference_bounds(pair, 1 - 2 * rules.significance_level)
    state: SliceState = "unharmed" if low > -rules.slice_margin else "undecided"
    if adjusted is not None and adjusted <= rules.significance_level:
        state = "harmed"
    exact = sum(tuned.values())
    return {
        "rows": pair.rows,
        "tuned": exact,
        "baseline": exact - pair.wins + pair.losses,
        "difference": pair.difference,
        "low": low,
        "high": high,
        "p_harm": adjusted,
        "state": state if adjusted is not None else "too few rows",
        "rows_needed": _rows_needed(pair, rules) if state == "undecided" else None,
    }


def _rows_needed(pair: Paired, rules: Release) -> int | None:
    return power.rows_needed(pair, -rules.slice_margin, rules.significance_level, rules.power)


def _harmed(against: str, tested: Sequence[str], table: dict[str, SliceComparison], rules: Release) -> Finding:
    harmed = [name for name in tested if table[name]["state"] == "harmed"]
    lost = "; ".join(
        f"{name}: {table[name]['tuned']} of {table[name]['rows']} right, {against} {table[name]['baseline']}"
        for name in harmed
    )
    none = f"none of {len(tested)} slices with at least {rules.min_slice_rows} rows" if tested else "no slice to test"
    expected = f"no slice shown to lose more than {points(rules.slice_margin)} against {against}"
    figures: SlicesFigures = {"against": against, "slices": table}
    check = Check("no slice harmed", not harmed, expected, lost or none, value=len(harmed))
    return Finding(check, "harm" if harmed else "holds", figures)


def _undecided(tested: Sequence[str], table: Mapping[str, SliceComparison], rules: Release) -> Finding:
    names = [name for name in tested if table[name]["state"] == "undecided"]
    listed = "; ".join(f"{name} ({between_points(table[name]['low'], table[name]['high'])})" for name in names)
    observed = f"{len(names)} of {len(tested)} cannot: {listed}" if names else f"all {len(tested)} do"
    small = sum(row["state"] == "too few rows" for row in table.values())
    if small:
        observed += f"; {small} more have fewer than {rules.min_slice_rows} rows and were not tested"
    expected = f"every slice excludes a loss of more than {points(rules.slice_margin)}"
    figures: UndecidedSlicesFigures = {"undecided": names, "untested": small}
    check = Check("slices without doubt", not names, expected, observed, "warning", len(names))
    return Finding(check, "holds", figures)
