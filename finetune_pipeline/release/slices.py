"""Is a slice of the test rows harmed, though the mean is not? Pure: two findings (criteria.py).

slices_unharmed("few_shot", tuned, few_shot, {"r1": "refund", ...}, groups, rules)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_pipeline.config import Release
from finetune_pipeline.records import Check
from finetune_pipeline.release import power, statistics
from finetune_pipeline.release.criteria import Finding, Groups, Right
from finetune_pipeline.release.formatting import between_points, points
from finetune_pipeline.release.statistics import Paired


def slices_unharmed(
    against: str, tuned: Right, baseline: Right, slices: Mapping[str, str], groups: Groups, rules: Release
) -> tuple[Finding, Finding]:
    """Two findings: is a slice shown to be harmed (it blocks), and which slices cannot exclude harm (a warning).

    A slice is harmed when it loses more than `slice_margin` against the best prompted baseline: score test of that
    margin and exact test, one-sided, Holm's step-down over the slices with at least `min_slice_rows` rows.

    Why not non-inferiority in each slice, as for general ability: a slice of 10 rows in which both models give the very
    same answers still leaves a loss of up to 21 points possible; it takes 25 such rows, or 100 to 200 with the usual
    disagreement, to exclude 10 points. Such a gate would pass nothing, or make people declare fewer slices. So a slice
    blocks on evidence, and what the evidence cannot exclude is named, with the rows it would take, for people to weigh.
    """
    parts: defaultdict[str, dict[str, bool]] = defaultdict(dict)
    for row, right in tuned.items():
        parts[slices[row]][row] = right
    named = {name: rows for name, rows in sorted(parts.items()) if name}
    pairs = {
        name: statistics.paired(rows, {row: baseline[row] for row in rows}, groups) for name, rows in named.items()
    }
    tested = [name for name, pair in pairs.items() if pair.rows >= rules.min_slice_rows]
    chances = [statistics.p_value(statistics.mirrored(pairs[name]), rules.slice_margin) for name in tested]
    adjusted = dict(zip(tested, statistics.holm(chances), strict=True))
    table = {name: _slice(pair, adjusted.get(name), named[name], rules) for name, pair in pairs.items()}
    harmed = [name for name in tested if table[name]["state"] == "harmed"]
    open_ = [name for name in tested if table[name]["state"] == "undecided"]
    return _blocking(against, harmed, tested, table, rules), _undecided(open_, tested, table, rules)


def _slice(pair: Paired, adjusted: float | None, right: Right, rules: Release) -> dict[str, Any]:
    low, high = statistics.difference_bounds(pair, 1 - 2 * rules.significance_level)
    state = "unharmed" if low > -rules.slice_margin else "undecided"
    if adjusted is not None and adjusted <= rules.significance_level:
        state = "harmed"
    exact = sum(right.values())
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


def _blocking(
    against: str, harmed: Sequence[str], tested: Sequence[str], table: Mapping[str, dict[str, Any]], rules: Release
) -> Finding:
    lost = "; ".join(
        f"{name}: {table[name]['tuned']} of {table[name]['rows']} right, {against} {table[name]['baseline']}"
        for name in harmed
    )
    fine = f"none of {len(tested)} slices with at least {rules.min_slice_rows} rows" if tested else "no slice to test"
    expected = f"no slice shown to lose more than {points(rules.slice_margin)} against {against}"
    check = Check("no slice harmed", not harmed, expected, lost or fine, value=len(harmed))
    return Finding(check, "harm" if harmed else "holds", {"against": against, "slices": dict(table)})


def _undecided(
    names: Sequence[str], tested: Sequence[str], table: Mapping[str, dict[str, Any]], rules: Release
) -> Finding:
    listed = "; ".join(f"{name} ({between_points(table[name]['low'], table[name]['high'])})" for name in names)
    observed = f"{len(names)} of {len(tested)} cannot: {listed}" if names else f"all {len(tested)} do"
    small = sum(row["state"] == "too few rows" for row in table.values())
    if small:
        observed += f"; {small} more have fewer than {rules.min_slice_rows} rows and were not tested"
    expected = f"every slice excludes a loss of more than {points(rules.slice_margin)}"
    check = Check("slices without doubt", not names, expected, observed, "warning", len(names))
    return Finding(check, "holds", {"undecided": list(names), "untested": small})
