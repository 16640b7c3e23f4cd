"""The figures of a traffic report: what was counted, as it is written to report.json.

{"about": {"task": "support_tickets", "version": 4, "adapter": "9be0…", "from": "2026-01-05", ...},
 "summary": "400 requests in the last 7 days; no alarm", "checks": [{"name": "enough traffic", ...}],
 "requests": 400, "invalid_share": 0.01, "p95_seconds": 0.9, ..., "drift": {...}, "alarms": []}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from finetune_pipeline.monitor.drift import Drift
from finetune_pipeline.monitor.traffic_log import Traffic
from finetune_pipeline.statistics.proportion import clopper_pearson

CONFIDENCE = 0.95
MAX_KINDS = 50  # most frequent kinds of answers in report.json


# The serving version (None where nothing serves) and the days, first and last included (UTC, ISO 8601).
About = TypedDict("About", {"task": str, "version": int | None, "adapter": str, "from": str, "to": str, "made_at": str})


class DayFigures(TypedDict):
    """Requests of one day, and how many of their answers broke the format."""

    requests: int
    broken: int


class BinFigures(TypedDict):
    """One bin of a drift: shares of the test rows and of the live rows, 0 to 1."""

    name: str
    test: float
    live: float


class DriftFigures(TypedDict):
    """The stability index of one quantity, and what 99 of 100 comparisons stay below without drift."""

    psi: float
    noise: float
    bins: list[BinFigures]


class CheckFigures(TypedDict):
    """A check without its severity: an alarm is named in `alarms`."""

    name: str
    passed: bool
    expected: str
    observed: str


class TrafficFigures(TypedDict):
    """Counts of the serving version's requests. `invalid_share` of the checked answers (0 to 1) with its exact 95 %
    interval; seconds of an answer, and in the queue, as quantiles, None without answers; `refused` by code; `versions`
    of all lines; `days` by date; `drift` by name; `alarms`: names of the checks that failed as errors."""

    requests: int
    first: str
    last: str
    checked: int
    broken: int
    invalid_share: float | None
    invalid_interval: list[float] | None
    p50_seconds: float | None
    p95_seconds: float | None
    fallbacks: int
    rejected: int
    errors: int
    abandoned: int
    refused: dict[str, int]
    queued_p50_seconds: float | None
    queued_p95_seconds: float | None
    prompt_tokens: int
    completion_tokens: int
    versions: dict[str, int]
    kinds: dict[str, int]
    days: dict[str, DayFigures]
    unreadable_lines: int
    drift: dict[str, DriftFigures]
    alarms: list[str]


class TrafficReport(TrafficFigures):
    """report.json."""

    about: About
    summary: str
    checks: list[CheckFigures]


def traffic_figures(traffic: Traffic, drifts: Sequence[Drift], alarms: Sequence[str]) -> TrafficFigures:
    interval = list(clopper_pearson(traffic.broken, traffic.checked, CONFIDENCE)) if traffic.checked else None
    return {
        "requests": traffic.requests,
        "first": traffic.first,
        "last": traffic.last,
        "checked": traffic.checked,
        "broken": traffic.broken,
        "invalid_share": traffic.broken / traffic.checked if traffic.checked else None,
        "invalid_interval": interval,
        "p50_seconds": quantile(traffic.seconds, 0.50),
        "p95_seconds": quantile(traffic.seconds, 0.95),
        "fallbacks": traffic.statuses["fallback"],
        "rejected": traffic.statuses["rejected"],
        "errors": traffic.statuses["error"],
        "abandoned": traffic.statuses["abandoned"],
        "refused": dict(traffic.refused.most_common()),
        "queued_p50_seconds": quantile(traffic.queued, 0.50),
        "queued_p95_seconds": quantile(traffic.queued, 0.95),
        "prompt_tokens": int(sum(traffic.prompt_tokens)),
        "completion_tokens": int(sum(traffic.completion_tokens)),
        "versions": dict(traffic.versions.most_common()),
        "kinds": dict(traffic.kinds.most_common(MAX_KINDS)),
        "days": {day: {"requests": n, "broken": broken} for day, (n, broken) in sorted(traffic.days.items())},
        "unreadable_lines": traffic.unreadable,
        "drift": {drift.name: drift_figures(drift) for drift in drifts},
        "alarms": list(alarms),
    }


def drift_figures(drift: Drift) -> DriftFigures:
    bins: list[BinFigures] = [{"name": bin.name, "test": bin.test, "live": bin.live} for bin in drift.bins]
    return {"psi": drift.psi, "noise": drift.noise, "bins": bins}


def quantile(seconds: Sequence[float], share: float) -> float | None:
    """The quantile in seconds, rounded to milliseconds; None without values."""
    import numpy as np

    return round(float(np.quantile(seconds, share)), 3) if len(seconds) else None
