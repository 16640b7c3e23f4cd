"""How the release's figures are written in checks and reports: percent for shares, points for their differences.

percent(0.834)                    "83.4 %"
points(0.05)                      "5.0 points"
count_and_share({"r1": True, ...})    "112 of 135 (83 %)"
bullets({"seed": 0})              "- seed: 0"
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from finetune_pipeline.release.paired_tests import Paired
from finetune_pipeline.statistics.formatting import percent, round_up


def points(value: float) -> str:
    return f"{100 * value:.1f} points"


def count_and_share(outcomes: Mapping[str, bool], written: Callable[[float], str] = percent) -> str:
    """Count and share of the rows that are right (or valid). `written`: percent_down for a share with a minimum."""
    count, rows = sum(outcomes.values()), len(outcomes)
    return f"{count} of {rows} ({written(count / rows)})" if rows else "no rows"


def signed(value: float) -> str:
    return f"{100 * value:+.1f} %"


def signed_up(value: float) -> str:
    """As `signed`, rounded up: for a value that has a maximum."""
    return f"{round_up(value) if math.isfinite(value) else value:+.1f} %"


def between_points(low: float, high: float) -> str:
    return f"between {100 * low:+.1f} and {100 * high:+.1f} points"


def interval_name(alpha: float) -> str:
    """The two-sided interval whose ends are one-sided bounds at level `alpha`."""
    return f"{percent(1 - 2 * alpha)} interval"


def bullets(values: Mapping[str, Any]) -> str:
    """A list in Markdown."""
    return "\n".join(f"- {name}: {value}" for name, value in values.items())


def paired_difference(pair: Paired, low: float, high: float, p: float, alpha: float) -> str:
    difference = f"{100 * pair.difference:+.1f} points, {between_points(low, high)} ({interval_name(alpha)})"
    return f"{difference}; {pair.wins} rows won, {pair.losses} lost, p = {p:.2g}"
