"""Format shares as percentages for reports, messages and web pages, with one decimal at most; durations; lists.

    percent(0.834)               "83.4 %"
    percent(0.9996)              "99.9 %"
    percent_down(0.9496)         "94.9 %"
    duration(80)                 "1 min 20 s"
    listed("abcdefg")            "a, b, c, d, e and 2 more"

`percent` shows 100 % only for 1. A value that is compared with a threshold is written with `percent_down` (a minimum)
or `percent_up` (a maximum), so that rounding never crosses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

NAMED = 5  # names that a text lists
_EPSILON = 1e-9  # 0.95 * 1000 is a little less than 950


def percent(share: float | None) -> str:
    """The share rounded to one decimal, between 0.1 % and 99.9 % unless it is exactly 0 or 1. None is a dash."""
    if share is None:
        return "–"
    rounded = round(100 * share, 1)
    if 0 < abs(share) < 1:
        rounded = math.copysign(min(max(abs(rounded), 0.1), 99.9), share)
    return f"{rounded:g} %"


def percent_down(share: float) -> str:
    """The share rounded down to one decimal: for a value that has to reach a threshold."""
    return f"{math.floor(share * 1000 + _EPSILON) / 10:g} %"


def percent_up(share: float) -> str:
    """The share rounded up to one decimal: for a value that must not exceed a threshold."""
    return f"{round_up(share):g} %"


def round_up(share: float) -> float:
    """The share in percent, rounded up to one decimal."""
    return math.ceil(share * 1000 - _EPSILON) / 10


def duration(seconds: float) -> str:
    """ "20 s", "1 min 20 s", from 10 minutes on "12 min", from 90 minutes on "1.5 h"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 10:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    return f"{seconds / 60:.0f} min" if minutes < 90 else f"{seconds / 3600:,.1f} h"


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """The first five names, and how many more there are; "" for none."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return separator.join(names[:NAMED]) + more
