"""The criteria that a candidate has to meet, one function each. Each returns a Finding (figures.py).

    superiority("few_shot", tuned, few_shot, groups, rules)               # holds, harm or undecided
    non_inferiority("live version 3", tuned, champion, groups, rules)     # `rows_needed`: how many would decide it

Only a criterion that *holds* counts for a release; what follows from all of them together is in decide.py, the tests
themselves are in paired_tests.py, the criterion on slices in slices.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from finetune_pipeline.config import Release
from finetune_pipeline.records import Check
from finetune_pipeline.release import paired_tests, power
from finetune_pipeline.release.figures import (
    GENERAL_TEXTS,
    Finding,
    FormatFigures,
    GeneralChange,
    Groups,
    Outcomes,
    PairFigures,
    ReuseFigures,
    RowFigures,
    State,
)
from finetune_pipeline.release.formatting import (
    count_and_share,
    interval_name,
    paired_difference,
    points,
    signed,
    signed_up,
)
from finetune_pipeline.release.holdout_reuse import HoldoutReuse
from finetune_pipeline.release.paired_tests import Paired
from finetune_pipeline.release.relative_change import relative_rise
from finetune_pipeline.statistics.formatting import percent, percent_down
from finetune_pipeline.statistics.proportion import clopper_pearson

SEED = 0  # of the bootstraps; they are a function of the data and this
REPORT_CONFIDENCE = 0.95  # of the interval in reports; the decision's own bounds are one-sided, at 1 - alpha
MAX_ADAPTERS = 5  # evaluated on one test set: from this number on the check on holdout reuse warns


def enough_rows(rows: Collection[str], groups: Groups, rules: Release) -> Finding:
    """Are there as many test rows as the declared power needs? Rows of one group count once: they are right or wrong
    together.

    Five rows, all won, are significant at 5 %, and the test is correct; but a set this small shows only huge gains, or
    lucky ones, and five rows do not represent the task. The number needed follows from the declaration alone, never
    from the answers.
    """
    gain = rules.min_gain + rules.detectable_gain
    needed = power.fewest_rows(gain, rules.min_gain, rules.significance_level, rules.power)
    single = sum(groups.get(row) is None for row in rows)
    independent = single + len({groups.get(row) for row in rows} - {None})
    enough = independent >= needed
    expected = (
        f"at least {needed} independent test rows: fewer cannot show a gain of {points(gain)} with a power of "
        f"{percent(rules.power)}"
    )
    observed = f"{len(rows)} test rows"
    if independent < len(rows):
        observed += f", {independent} independent (rows of one group count once)"
    in_all = math.ceil(needed * len(rows) / independent) if independent else needed
    figures: RowFigures = {"rows": len(rows), "independent": independent, "needed": needed}
    check = Check("enough test rows", enough, expected, observed, value=independent)
    return Finding(check, "holds" if enough else "undecided", figures, None if enough else in_all)


def superiority(name: str, tuned: Outcomes, baseline: Outcomes, groups: Groups, rules: Release) -> Finding:
    """Is the tuned model better than this baseline by more than `min_gain`, at level `significance_level`?

    Harm is shown where the upper bound of the gain does not exceed `min_gain`.
    """
    alpha, least = rules.significance_level, rules.min_gain
    pair = paired_tests.paired(tuned, baseline, groups)
    p = paired_tests.p_value(pair, least)
    low, high = paired_tests.difference_bounds(pair, 1 - 2 * alpha)
    state: State = "holds" if p <= alpha and low > least else "undecided"
    if state == "undecided" and high <= least:
        state = "harm"
    more = f"more rows exactly right, by more than {points(least)}" if least else "more rows exactly right"
    expected = f"{more}, with a risk of error of at most {percent(alpha)}"
    observed = _compared(tuned, baseline, pair, low, high, p, alpha)
    rows = power.rows_needed(pair, least, alpha, rules.power) if state == "undecided" else None
    check = Check(f"better than {name}", state == "holds", expected, observed, value=pair.difference)
    return Finding(check, state, _pair_figures(pair, low, high, p, alpha), rows)


def non_inferiority(name: str, tuned: Outcomes, other: Outcomes, groups: Groups, rules: Release) -> Finding:
    """Does the interval exclude that the tuned model is worse by `non_inferiority_margin` or more?

    Harm is shown where the whole interval lies below 0, within the margin too: the margin covers what these rows cannot
    show, not a loss that they do show.
    """
    alpha, margin = rules.significance_level, rules.non_inferiority_margin
    pair = paired_tests.paired(tuned, other, groups)
    p = paired_tests.p_value(pair, -margin)
    low, high = paired_tests.difference_bounds(pair, 1 - 2 * alpha)
    state: State = "holds" if p <= alpha and low > -margin else "undecided"
    if high < 0:
        state = "harm"
    expected = (
        f"not shown to be worse, and a loss of {points(margin)} or more excluded, with a risk of error of at most "
        f"{percent(alpha)}"
    )
    observed = _compared(tuned, other, pair, low, high, p, alpha)
    if state == "harm":
        observed += "; shown to be worse"
    figures = _pair_figures(pair, low, high, p, alpha)
    figures["margin"] = margin
    rows = power.rows_needed(pair, -margin, alpha, rules.power) if state == "undecided" else None
    check = Check(f"no worse than {name}", state == "holds", expected, observed, value=pair.difference)
    return Finding(check, state, figures, rows)


def no_live_version() -> Finding:
    """The finding where the criterion against the live version does not apply."""
    observed = "no version is live, so there is none to compare with"
    check = Check("no worse than the live version", True, "applies only where a version is live", observed)
    return Finding(check, "holds")


def worth_its_cost(name: str, tuned: Outcomes, other: Outcomes, groups: Groups, rules: Release) -> Finding:
    """A warning where a model that costs a fraction is not shown to be worse than the tuned one."""
    alpha = rules.significance_level
    pair = paired_tests.paired(tuned, other, groups)
    p = paired_tests.p_value(pair)
    low, high = paired_tests.difference_bounds(pair, 1 - 2 * alpha)
    worth = p <= alpha
    observed = _compared(tuned, other, pair, low, high, p, alpha)
    if not worth:
        observed += f"; {name} may reach the same for a fraction of the cost: consider shipping it instead"
    expected = f"the tuned model is better than {name}"
    check = Check(f"worth more than {name}", worth, expected, observed, "warning", pair.difference)
    return Finding(check, "holds", _pair_figures(pair, low, high, p, alpha))


def general_ability(
    losses: Sequence[tuple[float, float]] | None, rules: Release, unmeasurable: str | None = None
) -> Finding:
    """Non-inferiority: does the interval exclude that the loss on general texts rose by more than `general_margin`?

    `losses`: pairs of the base's and the tuned model's mean negative log likelihood (nats per token); None where the
    declaration switches the measurement off. `unmeasurable`: why it cannot be measured; then nothing is shown, unless
    the declaration waives it with a reason.
    """
    name, expected = "general ability kept", f"loss on general texts at most {percent(rules.general_margin)} higher"
    if unmeasurable is not None:
        return _not_measured(name, expected, unmeasurable, rules)
    if losses is None:
        observed = "not measured: `evaluate.general` is false, so a loss of general ability is not detected"
        off: GeneralChange = {"measured": False}
        return Finding(Check(name, False, expected, observed, "warning"), "holds", off)
    alpha, margin = rules.significance_level, rules.general_margin
    rise = relative_rise([pair[0] for pair in losses], [pair[1] for pair in losses], alpha, SEED)
    state: State = "holds" if rise.high <= margin else "undecided"
    if rise.low > margin:
        state = "harm"
    between = f"between {signed_up(rise.low)} and {signed_up(rise.high)}" if rise.rows > 1 else "of unknown spread"
    measured = f"{signed(rise.rise)} on {rise.rows} texts, {between} ({interval_name(alpha)})"
    figures: GeneralChange = {
        "measured": True,
        "texts": rise.rows,
        "rise": _finite(rise.rise),
        "low": _finite(rise.low),
        "high": _finite(rise.high),
        "margin": margin,
    }
    texts = power.texts_needed(rise, margin, alpha, rules.power) if state == "undecided" else None
    check = Check(name, state == "holds", expected, measured if rise.rows else "no text", value=_finite(rise.rise))
    return Finding(check, state, figures, texts, GENERAL_TEXTS)


def _not_measured(name: str, expected: str, why: str, rules: Release) -> Finding:
    unknown: GeneralChange = {"measured": False}
    observed = f"not measured: {why}"
    if rules.general_waiver is None:
        return Finding(Check(name, False, expected, observed), "undecided", unknown, unit=GENERAL_TEXTS)
    observed += f"; waived: {rules.general_waiver}"
    return Finding(Check(name, False, expected, observed, "warning"), "holds", unknown)


def format_kept(valid: Outcomes, rules: Release) -> Finding:
    """Do enough answers have the declared format? The observed share decides; harm is shown where even the upper bound
    is below `min_valid_rate`, and where only the lower bound is below it, the check says so.

    The share, not the lower bound, because a miss does not go unnoticed: the endpoint checks every answer and the
    traffic report watches the share, whereas the bound would refuse a model with 30 of 30 answers valid.
    """
    alpha, least = rules.significance_level, rules.min_valid_rate
    right, rows = sum(valid.values()), len(valid)
    low, high = clopper_pearson(right, rows, 1 - 2 * alpha)
    passed = rows > 0 and right / rows >= least
    state: State = "holds" if passed else "harm" if high < least else "undecided"
    share = count_and_share(valid, percent_down)
    observed = f"{share}, between {percent_down(low)} and {percent_down(high)} ({interval_name(alpha)})"
    if passed and low < least:
        observed += f"; this number of rows cannot exclude a share below {percent(least)}"
    needed = power.share_rows_needed(right, rows, least, alpha, rules.power) if state == "undecided" else None
    figures: FormatFigures = {"rows": rows, "valid": right, "low": low, "high": high, "min_valid_rate": least}
    expected = f"at least {percent(least)} of the answers valid"
    check = Check("answers keep the format", passed, expected, observed, value=right / rows if rows else None)
    return Finding(check, state, figures, needed)


def limited_reuse(reuse: HoldoutReuse, rules: Release) -> Finding:
    """A warning once so many adapters were evaluated on the test set that a promotion may well be luck."""
    limited = reuse.adapters < MAX_ADAPTERS
    luck = 1 - (1 - rules.significance_level) ** reuse.adapters
    observed = "the first adapter on this test set" if reuse.adapters == 1 else f"{reuse.adapters} adapters so far"
    if not limited:
        observed += f"; if none of them is better, one is promoted with a chance of up to {percent(luck)}: add rows"
    if reuse.rule_sets > 1:
        observed += f"; this adapter was evaluated by {reuse.rule_sets} sets of rules: set them before the evaluation"
    expected = f"fewer than {MAX_ADAPTERS} adapters evaluated on the same test set"
    check = Check("holdout reuse", limited and reuse.rule_sets == 1, expected, observed, "warning", reuse.adapters)
    figures: ReuseFigures = {"adapters": reuse.adapters, "rule_sets": reuse.rule_sets, "chance_of_luck": luck}
    return Finding(check, "holds", figures)


def _compared(tuned: Outcomes, other: Outcomes, pair: Paired, low: float, high: float, p: float, alpha: float) -> str:
    return f"{count_and_share(tuned)} against {count_and_share(other)}: {paired_difference(pair, low, high, p, alpha)}"


def _finite(value: float) -> float | None:
    """JSON has no infinity: an open end is null."""
    return value if abs(value) < float("inf") else None


def _pair_figures(pair: Paired, low: float, high: float, p: float, alpha: float) -> PairFigures:
    return {
        "rows": pair.rows,
        "wins": pair.wins,
        "losses": pair.losses,
        "difference": pair.difference,
        "interval": list(paired_tests.difference_bounds(pair, REPORT_CONFIDENCE)),
        "confidence": REPORT_CONFIDENCE,
        "bounds": [low, high],
        "bounds_confidence": 1 - 2 * alpha,
        "bootstrap": list(paired_tests.bootstrap_bounds(pair, 1 - 2 * alpha, SEED)),
        "p": p,
        "p_two_sided": float(paired_tests.mcnemar(pair.wins, pair.losses, "two-sided")),
        "design_effect": pair.design,
    }
