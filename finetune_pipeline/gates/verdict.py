"""From Great Expectations' result to the verdict of the gate, in plain English. Pure.

    every answer is valid JSON of the declared schema: 98.6 % of 742 rows, needed 95 %

Shares are cut, not rounded: 94.96 % of the rows is not "95.0 %, needed 95 %".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune_pipeline.config import Quality
from finetune_pipeline.gates.rules import ROW_OK, SHARE_DROPPED, Rule
from finetune_pipeline.records import Check, Json, Verdict

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult
    from pandas import DataFrame

GATE = "data_quality"
NAMED = 20  # failing rows named in the figures; all of them stand in rows.jsonl


def judge(
    result: ExpectationSuiteValidationResult, frame: DataFrame, rules: Sequence[Rule], quality: Quality, about: str
) -> Verdict:
    """The verdict about the data of content hash `about`: passed when every expectation is met."""
    checks = tuple(_check(each) for each in result.results)
    passed = bool(result.success) and bool(checks) and all(check.passed for check in checks)
    figures = _figures(frame, rules, quality)
    return Verdict(GATE, passed, about, _summary(passed, checks, figures), checks, figures)


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
        "broken": {rule.name: int((~frame[rule.name]).sum()) for rule in rules},
        "failing": [str(row) for row in frame.loc[~frame[ROW_OK], "id"].iloc[:NAMED]],
    }


def _summary(passed: bool, checks: Sequence[Check], figures: dict[str, Json]) -> str:
    rate, needed, rows = figures["rate"], figures["needed"], figures["rows"]
    assert isinstance(rate, float) and isinstance(needed, float)
    head = f"{percent(rate)} of {rows:,} rows are right in every respect, needed {percent(needed)}"
    if passed:
        return head
    reasons = [f"{c.expected.split(', in at least')[0]}: {c.observed}" for c in checks if not c.passed and c.name != ROW_OK]
    return head + ("; not met: " + "; ".join(reasons) if reasons else "")


def _check(each: Any) -> Check:
    config, found = each.expectation_config, each.result
    column = config.kwargs.get("column")
    name = f"{column or 'table'}" if config.type.endswith("to_be_in_set") else f"{column or 'table'}: {_kind(config.type)}"
    mostly = config.kwargs.get("mostly")
    expected = str(config.description)
    if mostly is not None:
        expected += f", in at least {percent(float(mostly))} of the rows"
    return Check(name, bool(each.success), expected, _observed(found, column))


def _observed(found: dict[str, Any], column: str | None) -> str:
    if "unexpected_count" in found:
        rows, wrong = found["element_count"], found["unexpected_count"] + found.get("missing_count", 0)
        return f"{percent((rows - wrong) / rows)} of {rows:,} rows" if rows else "no rows"
    value = found.get("observed_value")
    if value is None:
        return "nothing"
    if column == SHARE_DROPPED:
        return percent(float(value))
    return f"{len(value)} columns" if isinstance(value, list) else f"{value:,} rows"


def _kind(type_: str) -> str:
    return type_.removeprefix("expect_").removeprefix("column_values_").removeprefix("column_").replace("_", " ")


def percent(share: float) -> str:
    """One decimal, cut: 0.9496 is "94.9 %", 0.95 is "95 %"."""
    cut = math.floor(share * 1000 + 1e-9) / 10
    return f"{cut:g} %"
