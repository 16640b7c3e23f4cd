"""Figures in words, the same ones on every page of the release: percent for shares, points for their differences.

percent(0.834)            "83.4 %"
points(0.05)              "5.0 points"
"""

from __future__ import annotations

from collections.abc import Mapping

from finetune_pipeline.release.paired_tests import Paired
from finetune_pipeline.statistics.formatting import percent


def points(value: float) -> str:
    return f"{100 * value:.1f} points"


def share(right: Mapping[str, bool]) -> str:
    count = sum(right.values())
    return f"{count} of {len(right)} ({percent(count / len(right))})" if right else "no rows"


def signed(value: float) -> str:
    return f"{100 * value:+.1f} %"


def between_points(low: float, high: float) -> str:
    return f"between {100 * low:+.1f} and {100 * high:+.1f} points"


def interval_name(alpha: float) -> str:
    return f"{percent(1 - 2 * alpha)} interval"


def gain(pair: Paired, low: float, high: float, p: float, alpha: float) -> str:
    gain = f"{100 * pair.difference:+.1f} points, {between_points(low, high)} ({interval_name(alpha)})"
    return f"{gain}; {pair.wins} rows won, {pair.losses} lost, p = {p:.2g}"
