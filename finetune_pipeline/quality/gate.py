"""From Great Expectations' results to the verdict of the gate, in plain English. Pure.

    the answer is valid JSON of the declared schema, in at least 95 % of the rows: 98.6 % of 742 rows

Shares are cut, not rounded: 94.96 % of the rows is not "95.0 %, needed 95 %"; and losses are rounded up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from finetune_pipeline.config import Quality
from finetune_pipeline.quality.losses import SHARE_DROPPED, UNREADABLE, Losses, percent, percent_up
from finetune_pipeline.quality.rules import ROW_OK
from finetune_pipeline.quality.suite import Checked, name_of
from finetune_pipeline.records import Check, Json, Verdict

if TYPE_CHECKING:
    from pandas import DataFrame

GATE = "data_quality"
NAMED = 20  # failing rows named in the figures; all of them are in rows.jsonl


def evaluate_quality(checked: Checked, frame: DataFrame, losses: Losses, quality: Quality, about: str) -> Verdict:
    """The verdict about the data of content hash `about`: passed when every critical expectation is met."""
    checks = tuple(_check(each, checked) for each in checked.results)
    passed = bool(checks) and all(check.passed or check.severity == "warning" for check in checks)
    summary = _summary(checks, int(checked.row_ok.sum()), len(frame), quality.mostly)
    return Verdict(GATE, passed, about, summary, checks, _figures(checked, frame, losses, quality))


def failing(checked: Checked, frame: DataFrame) -> list[dict[str, Json]]:
    """The rows that are not right, and the rules they break: {"id", "origin", "rules": [...]}. No text of theirs."""
    wrong = ~checked.row_ok
    broken = checked.broken.loc[wrong, list(checked.rules)].to_numpy()
    return [
        {
            "id": row,
            "origin": origin,
            "rules": [name for name, is_so in zip(checked.rules, flags, strict=True) if is_so],
        }
        for row, origin, flags in zip(frame.loc[wrong, "id"], frame.loc[wrong, "origin"], broken, strict=True)
    ]


def _figures(checked: Checked, frame: DataFrame, losses: Losses, quality: Quality) -> dict[str, Json]:
    rows, right = len(frame), int(checked.row_ok.sum())
    return {
        "rate": right / rows if rows else 0.0,
        "needed": quality.mostly,
        "rows": rows,
        "right": right,
        "wrong": rows - right,
        "share_dropped": losses.share_dropped if rows else None,
        "unreadable": dict(losses.unreadable) if rows else {},
        "broken": {str(name): int(count) for name, count in checked.broken.sum().items()},
        "failing": [str(row) for row in frame.loc[~checked.row_ok, "id"].iloc[:NAMED]],
    }


def _summary(checks: Sequence[Check], right: int, rows: int, needed: float) -> str:
    rate = percent(right / rows) if rows else "0 %"
    head = f"{rate} of {rows:,} rows are right in every respect, needed {percent(needed)}"
    not_met = [check for check in checks if not check.passed and check.name != ROW_OK]
    reasons = [f"{check.expected}: {check.observed}" for check in not_met if check.severity == "error"]
    warnings = [f"{check.expected}: {check.observed}" for check in not_met if check.severity == "warning"]
    return "; ".join(
        [head]
        + (["not met: " + "; ".join(reasons)] if reasons else [])
        + (["warning: " + "; ".join(warnings)] if warnings else [])
    )


def _check(each: Any, checked: Checked) -> Check:
    config = each.expectation_config
    critical = config.severity == "critical"
    expected = str(config.description)
    severity: Literal["error", "warning"] = "error" if critical else "warning"
    return Check(name_of(each), bool(each.success), expected, _observed(each, checked), severity, _value(each, checked))


def _observed(each: Any, checked: Checked) -> str:
    """What one expectation found, in words; of texts only how many there are."""
    found, name = each.result, name_of(each)
    if {"element_count", "unexpected_count"} <= found.keys():
        rows, share = found["element_count"], _share(each, checked)
        return "no rows" if share is None else f"{percent(share)} of {rows:,} rows"
    value = found.get("observed_value")
    if value is None:
        return "nothing"
    if name.startswith((SHARE_DROPPED, UNREADABLE)):
        return percent_up(float(value))
    if isinstance(value, str | list | dict | tuple | set):
        return "a text" if isinstance(value, str) else f"{len(value):,} values"
    return f"{value:,} rows" if "row_count" in each.expectation_config.type else f"{value:,.4g}"


def _share(each: Any, checked: Checked) -> float | None:
    """The share of the rows for which an expectation about single rows holds; None without rows."""
    found, name = each.result, name_of(each)
    rows = found["element_count"]
    wrong = checked.broken[name].sum() if name in checked.broken else found["unexpected_count"]
    return float((rows - wrong) / rows) if rows else None


def _value(each: Any, checked: Checked) -> float | None:
    """What one expectation found as a number: a share of the rows, a share that was lost, a number of rows."""
    found = each.result
    if {"element_count", "unexpected_count"} <= found.keys():
        return _share(each, checked)
    value = found.get("observed_value")
    return float(value) if isinstance(value, int | float) else None
