"""From Great Expectations' result to the verdict of the gate, in plain English. Pure.

    every answer is valid JSON of the declared schema: 98.6 % of 742 rows, needed 95 %

Shares are cut, not rounded: 94.96 % of the rows is not "95.0 %, needed 95 %"; and losses are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune_pipeline.config import Quality
from finetune_pipeline.quality.rules import ROW_OK, SHARE_DROPPED, UNREADABLE, Rule
from finetune_pipeline.records import Check, Json, Verdict

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from pandas import DataFrame

GATE = "data_quality"
NAMED = 20  # failing rows named in the figures; all of them stand in rows.jsonl


def evaluate_quality(
    result: ExpectationSuiteValidationResult, frame: DataFrame, rules: Sequence[Rule], quality: Quality, about: str
) -> Verdict:
    """The verdict about the data of content hash `about`: passed when every expectation is met."""
    checks = tuple(_check(each) for each in result.results)
    passed = bool(result.success) and bool(checks) and all(check.passed for check in checks)
    summary = _summary(checks, int(frame[ROW_OK].sum()), len(frame), quality.mostly)
    return Verdict(GATE, passed, about, summary, checks, _figures(frame, rules, quality))


def failing(frame: DataFrame, rules: Sequence[Rule]) -> list[dict[str, Json]]:
    """The rows that are not right, and the rules they break: {"id", "origin", "rules": [...]}. No text of theirs."""
    bad = frame[~frame[ROW_OK]]
    names = [rule.name for rule in rules]
    broken = ~bad[names].to_numpy(dtype=bool)
    return [
        {"id": row, "origin": origin, "rules": [name for name, wrong in zip(names, flags, strict=True) if wrong]}
        for row, origin, flags in zip(bad["id"], bad["origin"], broken, strict=True)
    ]


def _figures(frame: DataFrame, rules: Sequence[Rule], quality: Quality) -> dict[str, Json]:
    rows, right = len(frame), int(frame[ROW_OK].sum())
    return {
        "rate": right / rows if rows else 0.0,
        "needed": quality.mostly,
        "rows": rows,
        "right": right,
        "wrong": rows - right,
        "share_dropped": float(frame[SHARE_DROPPED].iloc[0]) if rows else None,
        "unreadable": {
            str(name).removeprefix(UNREADABLE): float(frame[name].iloc[0])
            for name in frame.columns
            if rows and str(name).startswith(UNREADABLE)
        },
        "broken": {rule.name: int((~frame[rule.name]).sum()) for rule in rules},
        "failing": [str(row) for row in frame.loc[~frame[ROW_OK], "id"].iloc[:NAMED]],
    }


def _summary(checks: Sequence[Check], right: int, rows: int, needed: float) -> str:
    rate = percent(right / rows) if rows else "0 %"
    head = f"{rate} of {rows:,} rows are right in every respect, needed {percent(needed)}"
    reasons = [f"{check.expected}: {check.observed}" for check in checks if not check.passed and check.name != ROW_OK]
    return head + ("; not met: " + "; ".join(reasons) if reasons else "")


def _check(each: Any) -> Check:
    config = each.expectation_config
    return Check(config.meta["name"], bool(each.success), str(config.description), _observed(each), value=_value(each))


def _observed(each: Any) -> str:
    found = each.result
    if "unexpected_count" in found:
        rows, wrong = found["element_count"], found["unexpected_count"] + found.get("missing_count", 0)
        return f"{percent((rows - wrong) / rows)} of {rows:,} rows" if rows else "no rows"
    value = found.get("observed_value")
    if value is None:
        return "nothing"
    if each.expectation_config.meta["name"].startswith((SHARE_DROPPED, UNREADABLE)):
        return percent_up(float(value))
    return f"{len(value)} columns" if isinstance(value, list) else f"{value:,} rows"


def _value(each: Any) -> float | None:
    """The share of rows for which it holds, the share that was lost, or the number of rows."""
    found = each.result
    if found.get("element_count"):
        wrong = found["unexpected_count"] + found.get("missing_count", 0)
        return 1 - float(wrong) / float(found["element_count"])
    value = found.get("observed_value")
    return float(value) if isinstance(value, int | float) else None


def percent(share: float) -> str:
    """One decimal, cut: 0.9496 is "94.9 %", 0.95 is "95 %"."""
    cut = math.floor(share * 1000 + 1e-9) / 10
    return f"{cut:g} %"


def percent_up(share: float) -> str:
    """One decimal, rounded up: a loss of 0.5001 is "50.1 %", more than the 50 % that are allowed."""
    return f"{math.ceil(share * 1000 - 1e-9) / 10:g} %"
