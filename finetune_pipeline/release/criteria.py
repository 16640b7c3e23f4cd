"""What is asked of a candidate, one function a question. Pure: each gives a Finding, a check with what it means.

    beats("few_shot", tuned, few_shot, groups, rules)   # holds, harm or undecided; `rows`: what would decide it

A finding *holds*, shows *harm* (the opposite of what is asked is itself shown), or is *undecided*: this test set is too
small for the difference there is. Only what holds counts for a release.

What it is not: what follows from all findings together (decide.py), or the tests themselves (statistics.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from finetune_pipeline.config import Release
from finetune_pipeline.records import Check, Json
from finetune_pipeline.release import power, statistics
from finetune_pipeline.release.rise import relative_rise
from finetune_pipeline.release.statistics import Paired
from finetune_pipeline.release.words import between_points, gain, interval_name, percent, points, share, signed

SEED = 0  # of the bootstraps; they are a function of the data and this
SHOWN = 0.95  # confidence of the interval that reports show; the decision's own bounds are one-sided, at 1 - alpha
WORN = 5  # decisions from which a test set counts as worn
Right: TypeAlias = Mapping[str, bool]  # row id -> is this variant's answer exactly right (or valid)?
Groups: TypeAlias = Mapping[str, str | None]
State = Literal["holds", "harm", "undecided"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`rows`: how many test rows in all (`unit`: or general texts) would decide it, None if nothing tells."""

    check: Check
    state: State
    figures: Mapping[str, Json] = field(default_factory=dict)
    rows: int | None = None
    unit: str = "test rows"


@dataclass(frozen=True, slots=True)
class Reuse:
    """How often this test set was looked at: `adapters` it has decided on, this one included; under how many sets of
    `rules` this adapter was judged, these included."""

    adapters: int = 1
    rules: int = 1


def beats(name: str, tuned: Right, baseline: Right, groups: Groups, rules: Release) -> Finding:
    """Superiority: is the tuned model better than this baseline by more than `min_gain`, at risk `alpha`?

    Harm is shown where the upper bound of the gain does not exceed `min_gain`.
    """
    pair = statistics.paired(tuned, baseline, groups)
    p = statistics.p_value(pair, rules.min_gain)
    low, high = statistics.difference_bounds(pair, 1 - 2 * rules.alpha)
    state: State = "holds" if p <= rules.alpha and low > rules.min_gain else "undecided"
    if state == "undecided" and high <= rules.min_gain:
        state = "harm"
    least = f"by more than {points(rules.min_gain)}" if rules.min_gain else "in more rows than not"
    expected = f"exactly right {least}, with a risk of at most {rules.alpha:.0%} to be wrong about that"
    observed = f"{share(tuned)} against {share(baseline)}: {gain(pair, low, high, p, rules.alpha)}"
    figures = _pair_figures(pair, low, high, p, rules.alpha)
    rows = power.rows_needed(pair, rules.min_gain, rules.alpha) if state == "undecided" else None
    return Finding(Check(f"better than {name}", state == "holds", expected, observed), state, figures, rows)


def cheaper(name: str, tuned: Right, other: Right, groups: Groups, rules: Release) -> Finding:
    """A warning where a model that costs a fraction cannot be shown to be worse than the tuned one."""
    pair = statistics.paired(tuned, other, groups)
    p = statistics.p_value(pair)
    low, high = statistics.difference_bounds(pair, 1 - 2 * rules.alpha)
    worth = p <= rules.alpha
    observed = f"{share(tuned)} against {share(other)}: {gain(pair, low, high, p, rules.alpha)}"
    if not worth:
        observed += f"; {name} may do the same job for a fraction of the cost: consider shipping that instead"
    check = Check(f"worth more than {name}", worth, f"the tuned model is better than {name}", observed, "warning")
    return Finding(check, "holds", _pair_figures(pair, low, high, p, rules.alpha))


def keeps_general_ability(losses: Sequence[tuple[float, float]] | None, rules: Release) -> Finding:
    """Non-inferiority: does the interval exclude that the loss on general text (mean negative log likelihood per token;
    pairs of base and tuned) rose by more than the margin? None: the declaration switched the measurement off."""
    name, expected = "general ability kept", f"loss on general text at most {percent(rules.general_margin)} higher"
    if losses is None:
        unknown = "not measured: `evaluate.general` is false, so nobody knows what else the model forgot"
        return Finding(Check(name, False, expected, unknown, "warning"), "holds", {"measured": False})
    before, after = [pair[0] for pair in losses], [pair[1] for pair in losses]
    rise = relative_rise(before, after, rules.alpha, SEED)
    state: State = "holds" if rise.high <= rules.general_margin else "undecided"
    if rise.low > rules.general_margin:
        state = "harm"
    between = f"between {signed(rise.low)} and {signed(rise.high)}" if rise.rows > 1 else "of unknown spread"
    observed = (
        f"{signed(rise.rise)} on {rise.rows} texts, {between} ({interval_name(rules.alpha)})"
        if rise.rows
        else "no text"
    )
    figures: dict[str, Json] = {"measured": True, "texts": rise.rows, "rise": _finite(rise.rise)}
    figures |= {"low": _finite(rise.low), "high": _finite(rise.high), "margin": rules.general_margin}
    texts = power.texts_needed(rise, rules.general_margin, rules.alpha) if state == "undecided" else None
    return Finding(Check(name, state == "holds", expected, observed), state, figures, texts, "general texts")


def answers_valid(valid: Right, rules: Release) -> Finding:
    """Do enough answers keep the declared format? The observed share decides; harm is shown where even the upper bound
    is below the bar, and where only the lower bound is below it, the check says so.

    The share, not the lower bound, because this is no comparison in which a miss goes unnoticed: the endpoint checks
    every answer and the traffic report watches the share, whereas the bound would refuse a model with 30 of 30 answers
    valid.
    """
    right, rows = sum(valid.values()), len(valid)
    low, high = statistics.clopper_pearson(right, rows, 1 - 2 * rules.alpha)
    passed = rows > 0 and right / rows >= rules.min_schema
    state: State = "holds" if passed else "harm" if high < rules.min_schema else "undecided"
    observed = f"{share(valid)}, between {percent(low)} and {percent(high)} ({interval_name(rules.alpha)})"
    if passed and low < rules.min_schema:
        observed += f"; so few rows cannot exclude a share below {percent(rules.min_schema)}"
    needed = power.share_rows_needed(right, rows, rules.min_schema, rules.alpha) if state == "undecided" else None
    figures: dict[str, Json] = {"rows": rows, "valid": right, "low": low, "high": high, "bar": rules.min_schema}
    check = Check(
        "answers keep the format", passed, f"at least {percent(rules.min_schema)} of the answers valid", observed
    )
    return Finding(check, state, figures, needed)


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
    low, high = statistics.difference_bounds(pair, 1 - 2 * rules.alpha)
    state = "unharmed" if low > -rules.slice_margin else "undecided"
    if adjusted is not None and adjusted <= rules.alpha:
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
        "rows_needed": power.rows_needed(pair, -rules.slice_margin, rules.alpha) if state == "undecided" else None,
    }


def _blocking(
    against: str, harmed: Sequence[str], tested: Sequence[str], table: Mapping[str, dict[str, Any]], rules: Release
) -> Finding:
    lost = "; ".join(
        f"{name}: {table[name]['tuned']} of {table[name]['rows']} right, {against} {table[name]['baseline']}"
        for name in harmed
    )
    fine = f"none of {len(tested)} slices with at least {rules.min_slice_rows} rows" if tested else "no slice to test"
    expected = f"no slice shown to lose more than {points(rules.slice_margin)} against {against}"
    check = Check("no slice harmed", not harmed, expected, lost or fine)
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
    check = Check("slices without doubt", not names, expected, observed, "warning")
    return Finding(check, "holds", {"undecided": list(names), "untested": small})


def fresh_test_set(reuse: Reuse, rules: Release) -> Finding:
    """A warning once the test set has decided so often that one of its decisions may well be luck."""
    worn = reuse.adapters >= WORN
    luck = 1 - (1 - rules.alpha) ** reuse.adapters
    observed = "this is its first decision" if reuse.adapters == 1 else f"{reuse.adapters} adapters so far"
    if worn:
        observed += (
            f"; were all of them useless, one would still be promoted with a chance of up to {luck:.0%}: add rows"
        )
    if reuse.rules > 1:
        observed += f"; this very adapter was judged by {reuse.rules} sets of rules: choose them before looking"
    check = Check(
        "test set not worn out", not worn and reuse.rules == 1, f"fewer than {WORN} decisions", observed, "warning"
    )
    return Finding(check, "holds", {"adapters": reuse.adapters, "rules": reuse.rules, "chance_of_luck": luck})


def _finite(value: float) -> float | None:
    """JSON knows no infinity: an open end is null."""
    return value if abs(value) < float("inf") else None


def _pair_figures(pair: Paired, low: float, high: float, p: float, alpha: float) -> dict[str, Json]:
    return {
        "rows": pair.rows,
        "wins": pair.wins,
        "losses": pair.losses,
        "difference": pair.difference,
        "interval": list(statistics.difference_bounds(pair, SHOWN)),
        "confidence": SHOWN,
        "bounds": [low, high],
        "bounds_confidence": 1 - 2 * alpha,
        "bootstrap": list(statistics.bootstrap_bounds(pair, 1 - 2 * alpha, SEED)),
        "p": p,
        "p_two_sided": float(statistics.mcnemar(pair.wins, pair.losses, "two-sided")),
        "design_effect": pair.design,
    }
