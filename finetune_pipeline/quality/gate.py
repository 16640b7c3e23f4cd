"""From Great Expectations' results to the verdict of the gate, in plain English. Pure.

    the answer is valid JSON of the declared schema, in at least 95 % of the rows: 98.6 % of 742 rows

Shares are rounded down, so that 94.96 % of the rows is not shown as 95 %; losses are rounded up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune_pipeline.config import Quality
from finetune_pipeline.quality.losses import SHARE_DROPPED, UNREADABLE, Losses
from finetune_pipeline.quality.rules import ROW_OK
from finetune_pipeline.quality.suite import Checked, name_of
from finetune_pipeline.records import Check, Verdict
from finetune_pipeline.statistics.formatting import percent_down, percent_up

if TYPE_CHECKING:
    from pandas import DataFrame

GATE = "data_quality"
NAMED = 20  # failing rows named in the figures; all of them are in rows.jsonl


@dataclass(frozen=True, slots=True)
class FailingRow:
    """A line of rows.jsonl: a row that breaks rules. No text of it."""

    id: str
    origin: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QualityFigures:
    """The figures of the verdict: `share` of the `rows` pass every rule (`right` of them, the others are `wrong`),
    `mostly` is required; `share_dropped` and `unreadable` as in Losses, None and {} without rows; `broken`: failing
    rows by rule; `failing`: the ids of the first of them."""

    share: float
    mostly: float
    rows: int
    right: int
    wrong: int
    share_dropped: float | None
    unreadable: Mapping[str, float]
    broken: Mapping[str, int]
    failing: list[str]


def evaluate_quality(checked: Checked, frame: DataFrame, losses: Losses, quality: Quality, about: str) -> Verdict:
    """The verdict about the data of content hash `about`: passed when every critical expectation is met."""
    checks = tuple(_check(each, checked) for each in checked.results)
    passed = bool(checks) and all(check.passed or check.severity == "warning" for check in checks)
    summary = _summary(checks, int(checked.row_ok.sum()), len(frame), quality.mostly)
    return Verdict(GATE, passed, about, summary, checks, asdict(_figures(checked, frame, losses, quality)))


def failing(checked: Checked, frame: DataFrame) -> list[FailingRow]:
    """The rows that break a rule, and which rules they break."""
    wrong = ~checked.row_ok
    broken = checked.broken.loc[wrong, list(checked.rules)].to_numpy()
    return [
        FailingRow(row, origin, tuple(name for name, breaks in zip(checked.rules, flags, strict=True) if breaks))
        for row, origin, flags in zip(frame.loc[wrong, "id"], frame.loc[wrong, "origin"], broken, strict=True)
    ]


def _figures(checked: Checked, frame: DataFrame, losses: Losses, quality: Quality) -> QualityFigures:
    rows, right = len(frame), int(checked.row_ok.sum())
    return QualityFigures(
        share=right / rows if rows else 0.0,
        mostly=quality.mostly,
        rows=rows,
        right=right,
        wrong=rows - right,
        share_dropped=losses.share_dropped if rows else None,
        unreadable=dict(losses.unreadable) if rows else {},
        broken={str(name): int(count) for name, count in checked.broken.sum().items()},
        failing=[str(row) for row in frame.loc[~checked.row_ok, "id"].iloc[:NAMED]],
    )


def _summary(checks: Sequence[Check], right: int, rows: int, threshold: float) -> str:
    rate = percent_down(right / rows) if rows else "0 %"
    head = f"{rate} of {rows:,} rows pass every rule, {percent_down(threshold)} required"
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
        return "no rows" if share is None else f"{percent_down(share)} of {rows:,} rows"
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
