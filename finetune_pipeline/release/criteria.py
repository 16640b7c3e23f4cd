"""What is asked of a candidate, one function a question. Pure: each gives a Finding, a check with what it means.

    beats("few_shot", tuned, few_shot, groups, rules)              # superiority: holds, harm or undecided
    no_worse("live version 3", tuned, champion, groups, rules)     # non-inferiority; `rows`: what would decide it

A finding *holds*, shows *harm* (the opposite of what is asked is itself shown), or is *undecided*: this test set is too
small for the difference there is. Only what holds counts for a release.

What it is not: what follows from all findings together (decide.py), or the tests themselves (statistics.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from finetune_pipeline.config import Release
from finetune_pipeline.records import Check, Json
from finetune_pipeline.release import power, statistics
from finetune_pipeline.release.formatting import gain, interval_name, percent, points, share, signed
from finetune_pipeline.release.relative_change import relative_rise
from finetune_pipeline.release.statistics import Paired

SEED = 0  # of the bootstraps; they are a function of the data and this
SHOWN = 0.95  # confidence of the interval that reports show; the decision's own bounds are one-sided, at 1 - alpha
WORN = 5  # decisions from which a test set counts as worn
TEST_ROWS = "test rows"
Right: TypeAlias = Mapping[str, bool]  # row id -> is this variant's answer exactly right (or valid)?
Groups: TypeAlias = Mapping[str, str | None]
State = Literal["holds", "harm", "undecided"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`unit`: what it rests on; `rows`: how many of these in all would decide it, None if nothing tells."""

    check: Check
    state: State
    figures: Mapping[str, Json] = field(default_factory=dict)
    rows: int | None = None
    unit: str = TEST_ROWS


@dataclass(frozen=True, slots=True)
class Reuse:
    """How often this test set was looked at: `adapters` it has decided on, this one included; under how many sets of
    `rules` this adapter was judged, these included."""

    adapters: int = 1
    rules: int = 1


def enough_rows(rows: Collection[str], groups: Groups, rules: Release) -> Finding:
    """Are there as many test rows as the declared power needs at least? Rows of one group count once: they are right or
    wrong together.

    Five rows, all won, are significant at 5 %, and the test is right about that; but so small a set finds only gains
    that are huge, or luck, and five rows stand for no one's questions. How many it takes follows from the declaration
    alone, never from the answers.
    """
    needed = power.fewest_rows(
        rules.min_gain + rules.detectable_gain, rules.min_gain, rules.significance_level, rules.power
    )
    single = sum(groups.get(row) is None for row in rows)
    independent = single + len({groups.get(row) for row in rows} - {None})
    enough = independent >= needed
    expected = (
        f"at least {needed} independent test rows: fewer cannot show a gain of "
        f"{points(rules.min_gain + rules.detectable_gain)} with a chance of {rules.power:.0%}"
    )
    observed = f"{len(rows)} test rows"
    if independent < len(rows):
        observed += f", {independent} independent (rows of one group count once)"
    wanted = math.ceil(needed * len(rows) / independent) if independent else needed
    figures: dict[str, Json] = {"rows": len(rows), "independent": independent, "needed": needed}
    return Finding(
        Check("enough test rows", enough, expected, observed, value=independent),
        "holds" if enough else "undecided",
        figures,
        None if enough else wanted,
    )


def beats(name: str, tuned: Right, baseline: Right, groups: Groups, rules: Release) -> Finding:
    """Superiority: is the tuned model better than this baseline by more than `min_gain`, at risk `alpha`?

    Harm is shown where the upper bound of the gain does not exceed `min_gain`.
    """
    pair = statistics.paired(tuned, baseline, groups)
    p = statistics.p_value(pair, rules.min_gain)
    low, high = statistics.difference_bounds(pair, 1 - 2 * rules.significance_level)
    state: State = "holds" if p <= rules.significance_level and low > rules.min_gain else "undecided"
    if state == "undecided" and high <= rules.min_gain:
        state = "harm"
    least = f"by more than {points(rules.min_gain)}" if rules.min_gain else "in more rows than not"
    expected = f"exactly right {least}, with a risk of at most {rules.significance_level:.0%} to be wrong about that"
    observed = f"{share(tuned)} against {share(baseline)}: {gain(pair, low, high, p, rules.significance_level)}"
    figures = _pair_figures(pair, low, high, p, rules.significance_level)
    rows = (
        power.rows_needed(pair, rules.min_gain, rules.significance_level, rules.power) if state == "undecided" else None
    )
    return Finding(
        Check(f"better than {name}", state == "holds", expected, observed, value=pair.difference), state, figures, rows
    )


def no_worse(name: str, tuned: Right, other: Right, groups: Groups, rules: Release) -> Finding:
    """Non-inferiority: does the interval exclude that the tuned model is worse by `non_inferiority_margin` or more?

    Harm is shown where the whole interval lies below 0, within the margin too: the margin covers what these rows cannot
    tell, not a loss that they show.
    """
    pair = statistics.paired(tuned, other, groups)
    margin = rules.non_inferiority_margin
    p = statistics.p_value(pair, -margin)
    low, high = statistics.difference_bounds(pair, 1 - 2 * rules.significance_level)
    state: State = "holds" if p <= rules.significance_level and low > -margin else "undecided"
    if high < 0:
        state = "harm"
    risk = f"{rules.significance_level:.0%}"
    expected = f"not shown to be worse, and a loss of {points(margin)} or more excluded at a risk of {risk}"
    observed = f"{share(tuned)} against {share(other)}: {gain(pair, low, high, p, rules.significance_level)}"
    if state == "harm":
        observed += "; shown to be worse"
    figures = _pair_figures(pair, low, high, p, rules.significance_level) | {"margin": margin}
    rows = power.rows_needed(pair, -margin, rules.significance_level, rules.power) if state == "undecided" else None
    return Finding(
        Check(f"no worse than {name}", state == "holds", expected, observed, value=pair.difference),
        state,
        figures,
        rows,
    )


def nothing_live() -> Finding:
    """Said where the criterion against the live version does not apply."""
    observed = "no version is live, so there is none to compare with"
    check = Check("no worse than the live version", True, "only asked where a version is live", observed)
    return Finding(check, "holds")


def cheaper(name: str, tuned: Right, other: Right, groups: Groups, rules: Release) -> Finding:
    """A warning where a model that costs a fraction cannot be shown to be worse than the tuned one."""
    pair = statistics.paired(tuned, other, groups)
    p = statistics.p_value(pair)
    low, high = statistics.difference_bounds(pair, 1 - 2 * rules.significance_level)
    worth = p <= rules.significance_level
    observed = f"{share(tuned)} against {share(other)}: {gain(pair, low, high, p, rules.significance_level)}"
    if not worth:
        observed += f"; {name} may do the same job for a fraction of the cost: consider shipping that instead"
    check = Check(
        f"worth more than {name}", worth, f"the tuned model is better than {name}", observed, "warning", pair.difference
    )
    return Finding(check, "holds", _pair_figures(pair, low, high, p, rules.significance_level))


def keeps_general_ability(losses: Sequence[tuple[float, float]] | None, rules: Release) -> Finding:
    """Non-inferiority: does the interval exclude that the loss on general text (mean negative log likelihood per token;
    pairs of base and tuned) rose by more than the margin? None: the declaration switched the measurement off."""
    name, expected = "general ability kept", f"loss on general text at most {percent(rules.general_margin)} higher"
    if losses is None:
        unknown = "not measured: `evaluate.general` is false, so nobody knows what else the model forgot"
        return Finding(Check(name, False, expected, unknown, "warning"), "holds", {"measured": False})
    before, after = [pair[0] for pair in losses], [pair[1] for pair in losses]
    rise = relative_rise(before, after, rules.significance_level, SEED)
    state: State = "holds" if rise.high <= rules.general_margin else "undecided"
    if rise.low > rules.general_margin:
        state = "harm"
    between = f"between {signed(rise.low)} and {signed(rise.high)}" if rise.rows > 1 else "of unknown spread"
    observed = (
        f"{signed(rise.rise)} on {rise.rows} texts, {between} ({interval_name(rules.significance_level)})"
        if rise.rows
        else "no text"
    )
    figures: dict[str, Json] = {"measured": True, "texts": rise.rows, "rise": _finite(rise.rise)}
    figures |= {"low": _finite(rise.low), "high": _finite(rise.high), "margin": rules.general_margin}
    texts = (
        power.texts_needed(rise, rules.general_margin, rules.significance_level, rules.power)
        if state == "undecided"
        else None
    )
    check = Check(name, state == "holds", expected, observed, value=_finite(rise.rise))
    return Finding(check, state, figures, texts, "general texts")


def answers_valid(valid: Right, rules: Release) -> Finding:
    """Do enough answers keep the declared format? The observed share decides; harm is shown where even the upper bound
    is below the bar, and where only the lower bound is below it, the check says so.

    The share, not the lower bound, because this is no comparison in which a miss goes unnoticed: the endpoint checks
    every answer and the traffic report watches the share, whereas the bound would refuse a model with 30 of 30 answers
    valid.
    """
    right, rows = sum(valid.values()), len(valid)
    low, high = statistics.clopper_pearson(right, rows, 1 - 2 * rules.significance_level)
    passed = rows > 0 and right / rows >= rules.min_valid_rate
    state: State = "holds" if passed else "harm" if high < rules.min_valid_rate else "undecided"
    observed = f"{share(valid)}, between {percent(low)} and {percent(high)} ({interval_name(rules.significance_level)})"
    if passed and low < rules.min_valid_rate:
        observed += f"; so few rows cannot exclude a share below {percent(rules.min_valid_rate)}"
    needed = None
    if state == "undecided":
        needed = power.share_rows_needed(right, rows, rules.min_valid_rate, rules.significance_level, rules.power)
    figures: dict[str, Json] = {"rows": rows, "valid": right, "low": low, "high": high, "bar": rules.min_valid_rate}
    check = Check(
        "answers keep the format",
        passed,
        f"at least {percent(rules.min_valid_rate)} of the answers valid",
        observed,
        value=right / rows if rows else None,
    )
    return Finding(check, state, figures, needed)


def fresh_test_set(reuse: Reuse, rules: Release) -> Finding:
    """A warning once the test set has decided so often that one of its decisions may well be luck."""
    worn = reuse.adapters >= WORN
    luck = 1 - (1 - rules.significance_level) ** reuse.adapters
    observed = "this is its first decision" if reuse.adapters == 1 else f"{reuse.adapters} adapters so far"
    if worn:
        observed += (
            f"; were all of them useless, one would still be promoted with a chance of up to {luck:.0%}: add rows"
        )
    if reuse.rules > 1:
        observed += f"; this very adapter was judged by {reuse.rules} sets of rules: choose them before looking"
    check = Check(
        "test set not worn out",
        not worn and reuse.rules == 1,
        f"fewer than {WORN} decisions",
        observed,
        "warning",
        reuse.adapters,
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
