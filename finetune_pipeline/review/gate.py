"""The review gate: are enough of the reviewed rows right as they were, and what can a sample of this size show at all?

    evaluate_review(rows, reviews, rules, about, drawn) -> Verdict      pure: no I/O; the desk shows it while the
    review goes on

A row counts as right when the majority of its reviewers approve it; an edited or rejected row was not right, nor was a
row that was taken out after it was drawn (rounds.py). The observed share decides, unless `review.require_lower_bound`
lets the lower bound decide. The bound takes into account how often the gate was asked before (bounds.py).

    57 of 60 rows right in round 1: observed 95.0 %, and with 97.5 % confidence at least 86.1 % of all rows

The statement is about the rows that nobody reviewed in an earlier round, as they are now. All others have a verdict of
their own, which is followed: they are approved, corrected or dropped.

What it is not: where verdicts are kept (verdict_store.py), or what becomes of the rows (assets.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Check, Example, Json, Review, Verdict
from finetune_pipeline.review.bounds import fresh_rows, interval, lower_bound, round_confidence
from finetune_pipeline.review.rounds import Decision, Round
from finetune_pipeline.review.verdict_store import by_row, progress, right

NAMED = 5  # wrong rows named in the check's text; all of them stand in the figures


def evaluate_review(
    rows: Sequence[Example],
    reviews: Iterable[Review],
    rules: ReviewRules,
    about: str,
    drawn: Round | None = None,
    decided: Sequence[Decision] = (),
) -> Verdict:
    """What the gate says of the sample's `rows`; `about` is the content hash of the data they were drawn from.

    Rows without all their verdicts are not counted, and fail the gate by a check of their own. `drawn` is the round:
    when all rows that the estimate is about were reviewed, the bound is the share itself. `decided` is what the gate
    said in this round before.
    """
    drawn = drawn or Round()
    reviews = list(reviews)
    given = by_row(rows, reviews)
    state = progress(rows, reviews, rules)
    late = set(state.missing)
    wrong = [row for row in rows if row.id not in late and not right(row, given[row.id])]
    n, k = state.done + drawn.gone, state.approved
    share = k / n if n else 0.0
    everything = drawn.population is not None and len(rows) >= drawn.population and not late
    bound = share if everything else lower_bound(k, n, round_confidence(rules.confidence, drawn.look))
    passes = share >= rules.min_approved and (bound >= rules.min_approved or not rules.require_lower_bound)
    needed = fresh_rows(share, rules, drawn.look if passes else drawn.look + 1)
    left = math.inf if drawn.population is None else drawn.population - len(rows)
    checks = (
        _complete(state.done, state.total, rules),
        _share(k, n, share, rules, wrong, drawn),
        _bound(bound, _advice(needed, left, passes, drawn, rules), drawn, rules),
        *_changed(reviews, about, decided),
    )
    figures: dict[str, Json] = {
        "round": drawn.number,
        "look": drawn.look,
        "rows": n,
        "gone": drawn.gone,
        "sample": state.total,
        "right": k,
        "share": share,
        "lower_bound": bound,
        "interval": list(interval(k, n, rules.confidence)),
        "threshold": rules.min_approved,
        "confidence": rules.confidence,
        "round_confidence": round_confidence(rules.confidence, drawn.look),
        "unseen": drawn.population,
        "fresh_rows_none_wrong": needed["none_wrong"],
        "fresh_rows_same_share": needed["same_share"],
        "recorded": state.recorded,
        "verdicts": state.given,
        "reviewers": sorted({review.reviewer for group in given.values() for review in group}),
        "wrong": [_named(row, given[row.id]) for row in wrong],
        "agreement": agreement(rows, given),
    }
    passed = all(check.passed for check in checks if check.severity == "error")
    return Verdict("expert_review", passed, about, _summary(figures, checks, drawn), checks, figures)


def agreement(rows: Sequence[Example], given: Mapping[str, Sequence[Review]]) -> list[dict[str, Json]]:
    """For each two reviewers with rows in common: on how many they agree, and Cohen's kappa (agreement beyond chance;
    "A coefficient of agreement for nominal scales", 1960). kappa is null where both always said the same one word:
    chance alone would agree there."""
    shared: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for row in rows:
        for a, b in combinations(sorted(given[row.id], key=lambda review: review.reviewer), 2):
            shared[a.reviewer, b.reviewer].append((a.decision, b.decision))
    return [
        {
            "reviewers": list(names),
            "rows": len(pairs),
            "agreement": sum(a == b for a, b in pairs) / len(pairs),
            "kappa": _kappa(pairs),
        }
        for names, pairs in sorted(shared.items())
    ]


def _kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    first, second = zip(*pairs, strict=True)
    if len(set(first) | set(second)) == 1:
        return None
    return float(cohen_kappa_score(first, second))


def _complete(done: int, total: int, rules: ReviewRules) -> Check:
    each = "one verdict" if rules.reviewers == 1 else f"{rules.reviewers} verdicts"
    return Check("every row reviewed", 0 < total == done, f"{total} rows with {each} each", f"{done} rows", value=done)


def _share(k: int, n: int, share: float, rules: ReviewRules, wrong: Sequence[Example], drawn: Round) -> Check:
    named = ", ".join(f"{row.id} ({row.origin})" for row in wrong[:NAMED])
    rest = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    observed = f"{k} of {n} ({share:.1%}) in round {drawn.number}" + (f"; wrong: {named}{rest}" if wrong else "")
    if drawn.gone:
        observed += f"; {drawn.gone} drawn and no longer in the data, which count as wrong"
    passed = n > 0 and share >= rules.min_approved
    return Check("share of rows that are right", passed, f"at least {rules.min_approved:.1%}", observed, value=share)


def _bound(bound: float, advice: str, drawn: Round, rules: ReviewRules) -> Check:
    severity: Literal["error", "warning"] = "error" if rules.require_lower_bound else "warning"
    holds = bound >= rules.min_approved
    confidence = round_confidence(rules.confidence, drawn.look)
    sure = f"at {confidence * 100:.6g}% confidence ({rules.confidence:.0%} over all rounds)"
    expected, observed = f"at least {rules.min_approved:.1%} {sure}", f"{bound:.1%}" + ("" if holds else f"; {advice}")
    return Check("lower bound of that share", holds, expected, observed, severity, bound)


def _advice(needed: Mapping[str, int | None], left: float, passes: bool, drawn: Round, rules: ReviewRules) -> str:
    """How many fresh rows show the bound: in the next round after a refusal, else in a larger sample than this one."""
    clean, same = needed["none_wrong"], needed["same_share"]
    if clean is None:
        return "no number of rows can show more"
    if not passes and clean > left:
        return (
            f"round {drawn.number + 1} needs {clean} fresh rows with none wrong to show it, and {left:.0f} are left "
            "that nobody has reviewed: add rows, review all of them, or declare a lower bar"
        )
    text = f"round {drawn.number + 1} needs {clean} fresh rows" if not passes else f"a round of {clean} rows"
    text += " with none wrong" + ("" if passes else " to show it")
    if same is not None and same > clean and (passes or same <= left):
        text += f", or {same} with the share of wrong rows of this one"
    text += " would show it" if passes else ""
    return text + (f" (review.max_rows allows {rules.max_rows})" if clean > rules.max_rows else "")


def _changed(reviews: Sequence[Review], about: str, decided: Sequence[Decision]) -> tuple[Check, ...]:
    """A warning where verdicts were changed after the gate had refused this very data by them."""
    refused = [one for one in decided if not one.passed and one.about == about]
    if not refused:
        return ()
    later = sum(review.at > refused[-1].at for review in reviews)
    before = f"refused with {refused[-1].right} of {refused[-1].rows} right on {refused[-1].at[:10]}"
    observed = f"{later} of {len(reviews)} verdicts are later" if later else "none is later"
    return (Check("verdicts as they were when the gate refused", not later, before, observed, "warning", later),)


def _summary(figures: Mapping[str, Json], checks: Sequence[Check], drawn: Round) -> str:
    if not figures["rows"]:
        return f"round {drawn.number}: no row has been reviewed yet"
    which = "fresh" if drawn.number > 1 else "reviewed"
    whose = "of those that nobody had reviewed before" if drawn.number > 1 else "of all"
    text = (
        f"round {drawn.number}: {figures['right']} of {figures['rows']} {which} rows are right "
        f"({figures['share']:.1%}); with {figures['confidence']:.0%} confidence over all rounds at least "
        f"{figures['lower_bound']:.1%} {whose}"
    )
    bound = next(check for check in checks if check.name.startswith("lower bound"))
    if not bound.passed:
        text += f" ({bound.observed.partition('; ')[2]})"
    if figures["gone"]:
        text += f"; {figures['gone']} of them are no longer in the data and count as wrong"
    if figures["recorded"]:
        text += f"; {figures['recorded']} of {figures['verdicts']} verdicts are recorded ones, not given in the desk"
    return text


def _named(row: Example, reviews: Sequence[Review]) -> dict[str, Json]:
    said = [
        f"{review.reviewer}: {review.decision}" + (f" ({review.note})" if review.note else "") for review in reviews
    ]
    return {"id": row.id, "origin": row.origin, "said": said}
