"""The review gate: are enough of the reviewed rows right as they were, and what can a sample of this size show at all?

    judge(rows, reviews, rules, about) -> Verdict      pure: no I/O; the desk shows it while the review is going on

A row counts as right when the majority of its reviewers approve it; an edited or rejected row was not right. The
observed share decides, unless `review.require_bound` lets the lower bound decide. The bound is that of Clopper and
Pearson ("The use of confidence or fiducial limits illustrated in the case of the binomial", Biometrika 26, 1934,
404-413): exact, never too optimistic; for a sample drawn without replacement from few rows it is conservative.

    57 of 60 rows right: observed 95.0 %, and with 95 % confidence at least 87.6 % of all rows

What it is not: where verdicts are kept (inbox.py), or what becomes of the rows (assets.py).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Literal

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Check, Example, Json, Review, Verdict
from finetune_pipeline.review.inbox import by_row, progress, right

MOST_ROWS = 10_000_000  # a review that needs more rows than this is not advice but a joke
NAMED = 5  # wrong rows named in the check's text; all of them stand in the figures


def judge(
    rows: Sequence[Example], reviews: Iterable[Review], rules: ReviewRules, about: str, population: int | None = None
) -> Verdict:
    """What the gate says of the sample's `rows`; `about` is the content hash of the data they were drawn from.

    Rows without all their verdicts are not counted, and fail the gate by a check of their own. `population` is the
    number of rows the sample was drawn from, where known: when all of them were reviewed, the bound is the share
    itself, and nobody is asked to review more rows than there are.
    """
    reviews = list(reviews)
    given = by_row(rows, reviews)
    state = progress(rows, reviews, rules)
    late = set(state.missing)
    wrong = [row for row in rows if row.id not in late and not right(row, given[row.id])]
    n, k = state.done, state.approved
    share = k / n if n else 0.0
    everything = population is not None and n >= population > 0  # nothing is inferred where every row was seen
    bound = share if everything else lower_bound(k, n, rules.confidence)
    more = more_rows(k, n, rules)
    checks = (
        _complete(state.done, state.total, rules),
        _share(k, n, share, rules, wrong),
        _bound(bound, more, n, population, rules),
    )
    figures: dict[str, Json] = {
        "rows": n,
        "sample": state.total,
        "right": k,
        "share": share,
        "lower_bound": bound,
        "interval": list(interval(k, n, rules.confidence)),
        "threshold": rules.threshold,
        "confidence": rules.confidence,
        "more_rows_none_wrong": more["none_wrong"],
        "more_rows_same_share": more["same_share"],
        "recorded": state.recorded,
        "verdicts": state.given,
        "reviewers": sorted({review.reviewer for group in given.values() for review in group}),
        "wrong": [_named(row, given[row.id]) for row in wrong],
        "agreement": agreement(rows, given),
    }
    passed = all(check.passed for check in checks if check.severity == "error")
    return Verdict("expert_review", passed, about, _summary(figures, checks, rules), checks, figures)


def lower_bound(right: float, n: float, confidence: float) -> float:
    """One-sided exact lower bound of a share: the (1-confidence) quantile of Beta(right, n-right+1).

    Equal to `scipy.stats.binomtest(k, n, alternative="greater").proportion_ci(confidence, "exact").low`; this form
    also takes counts that are no whole numbers, which planning needs.
    """
    from scipy.stats import beta

    return float(beta.ppf(1 - confidence, right, n - right + 1)) if right > 0 else 0.0


def interval(right: int, n: int, confidence: float) -> tuple[float, float]:
    """The two-sided exact interval, for reports."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    ci = binomtest(right, n).proportion_ci(confidence_level=confidence, method="exact")
    return float(ci.low), float(ci.high)


def more_rows(k: int, n: int, rules: ReviewRules) -> dict[str, int | None]:
    """How many more rows bring the lower bound to the threshold: if none of them is wrong (`none_wrong`), and if as
    many are wrong as so far (`same_share`). None: no number of rows does."""
    share = k / n if n else 1.0

    def reaches(m: int, right_share: float) -> bool:
        return lower_bound(k + right_share * m, n + m, rules.confidence) >= rules.threshold

    return {
        "none_wrong": _least(lambda m: reaches(m, 1.0)) if rules.threshold < 1 else None,
        "same_share": _least(lambda m: reaches(m, share)) if share > rules.threshold else None,
    }


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


def _least(holds: Callable[[int], bool]) -> int | None:
    """The least m >= 0 for which a condition holds that stays true once it is true; None beyond MOST_ROWS."""
    high = 1
    if holds(0):
        return 0
    while not holds(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _complete(done: int, total: int, rules: ReviewRules) -> Check:
    each = "one verdict" if rules.reviewers == 1 else f"{rules.reviewers} verdicts"
    return Check("every row reviewed", 0 < total == done, f"{total} rows with {each} each", f"{done} rows")


def _share(k: int, n: int, share: float, rules: ReviewRules, wrong: Sequence[Example]) -> Check:
    named = ", ".join(f"{row.id} ({row.origin})" for row in wrong[:NAMED])
    rest = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    observed = f"{k} of {n} ({share:.1%})" + (f"; wrong: {named}{rest}" if wrong else "")
    passed = n > 0 and share >= rules.threshold
    return Check("share of rows that are right", passed, f"at least {rules.threshold:.1%}", observed)


def _bound(bound: float, more: Mapping[str, int | None], n: int, population: int | None, rules: ReviewRules) -> Check:
    severity: Literal["error", "warning"] = "error" if rules.require_bound else "warning"
    holds = bound >= rules.threshold
    observed = f"{bound:.1%}" + ("" if holds else f"; {_advice(more, n, population)}")
    name = f"lower bound at {rules.confidence:.0%} confidence"
    return Check(name, holds, f"at least {rules.threshold:.1%}", observed, severity)


def _advice(more: Mapping[str, int | None], n: int, population: int | None) -> str:
    clean, same = more["none_wrong"], more["same_share"]
    if clean is None:
        return "no number of rows can show more"
    left = math.inf if population is None else population - n
    if clean > left:
        return (
            f"the {left:.0f} rows not yet reviewed are too few to show it: review all of them, or declare a lower bar"
        )
    text = f"{clean} more {'row' if clean == 1 else 'rows'} with none wrong would reach it"
    if same is not None and clean < same <= left:
        text += f", or {same} more with as many wrong as so far"
    return text


def _summary(figures: Mapping[str, Json], checks: Sequence[Check], rules: ReviewRules) -> str:
    if not figures["rows"]:
        return "no row has been reviewed yet"
    text = (
        f"{figures['right']} of {figures['rows']} reviewed rows are right ({figures['share']:.1%}); "
        f"with {rules.confidence:.0%} confidence at least {figures['lower_bound']:.1%} of all"
    )
    failed = [check for check in checks if not check.passed]
    if failed and failed[-1].name.startswith("lower bound"):
        text += f" ({failed[-1].observed.partition('; ')[2]})"
    if figures["recorded"]:
        text += f"; {figures['recorded']} of {figures['verdicts']} verdicts are recorded ones, not given in the desk"
    return text


def _named(row: Example, reviews: Sequence[Review]) -> dict[str, Json]:
    said = [
        f"{review.reviewer}: {review.decision}" + (f" ({review.note})" if review.note else "") for review in reviews
    ]
    return {"id": row.id, "origin": row.origin, "said": said}
