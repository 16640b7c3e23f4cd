"""How shares are written, on every page and in every message: one decimal at most, and never 100 % unless it is all.

percent(0.834)               "83.4 %"
percent(0.95)                "95 %"
percent_down(0.9496)         "94.9 %": of a share that has to reach 95 %, rounding must not show that it does
"""

from __future__ import annotations

import math

_EPSILON = 1e-9  # 0.95 * 1000 is a little less than 950


def percent(share: float | None) -> str:
    """The share rounded to one decimal; 99.96 % stays below 100 %, and 0.04 % above 0 %. None is a dash."""
    if share is None:
        return "–"
    rounded = round(100 * share, 1)
    if 0 < abs(share) < 1:
        rounded = math.copysign(min(max(abs(rounded), 0.1), 99.9), share)
    return f"{rounded:g} %"


def percent_down(share: float) -> str:
    """The share cut to one decimal: for what has to be at least as large as something."""
    return f"{math.floor(share * 1000 + _EPSILON) / 10:g} %"


def percent_up(share: float) -> str:
    """The share rounded up to one decimal: for what has to be at most as large as something."""
    return f"{math.ceil(share * 1000 - _EPSILON) / 10:g} %"
