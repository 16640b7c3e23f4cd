"""report.html: the traffic report for people, one page that loads nothing from elsewhere.

    html = page(about, report, task.monitor)

Every figure is in report.json; only the geometry of the charts is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from finetune_pipeline.config import Monitor
from finetune_pipeline.monitor.alarms import ENOUGH, Report
from finetune_pipeline.monitor.figures import About, DayFigures
from finetune_pipeline.statistics.formatting import percent

WIDTH, HEIGHT = 720, 120  # of the chart of days, in SVG units


@dataclass(frozen=True, slots=True)
class Bar:
    """One day of the chart, in SVG units: position, and the heights of all requests and of those with a broken
    answer."""

    day: str
    requests: int
    broken: int
    x: float
    width: float
    height: float
    broken_height: float


def page(about: About, report: Report, rules: Monitor) -> str:
    """The whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune_pipeline.monitor", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "seconds": seconds}
    text: str = environment.get_template("report.html.j2").render(
        about=about,
        figures=report.figures,
        report=report,
        tone=tone(report),
        bars=bars(report.figures["days"]),
        rules=rules,
        width=WIDTH,
        height=HEIGHT,
    )
    return text


def tone(report: Report) -> Literal["alarm", "quiet", "good"]:
    """alarm, quiet (too little traffic to check), or good."""
    if report.alarms:
        return "alarm"
    return "good" if any(check.name == ENOUGH and check.passed for check in report.checks) else "quiet"


def bars(days: Mapping[str, DayFigures]) -> list[Bar]:
    """The days with traffic as bars of the chart; the day with the most requests has the full height."""
    most = max((day["requests"] for day in days.values()), default=0)
    step = WIDTH / max(len(days), 1)
    return [
        Bar(
            name,
            day["requests"],
            day["broken"],
            round(i * step + 0.15 * step, 1),
            round(0.7 * step, 1),
            round(HEIGHT * day["requests"] / most, 1),
            round(HEIGHT * day["broken"] / most, 1),
        )
        for i, (name, day) in enumerate(days.items())
    ]


def seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"
