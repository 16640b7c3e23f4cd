"""Shares formatted as percentages."""

from __future__ import annotations

import pytest

from finetune_pipeline.statistics.formatting import listed, percent, percent_down, percent_up


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0 %"),
        (0.0001, "0.1 %"),
        (0.004, "0.4 %"),
        (0.5, "50 %"),
        (0.834, "83.4 %"),
        (0.9996, "99.9 %"),
        (1, "100 %"),
    ],
)
def test_percent_has_one_decimal_and_shows_100_only_for_1(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_missing_share_is_a_dash() -> None:
    assert percent(None) == "–"


@pytest.mark.parametrize(
    ("share", "down", "up"), [(0.9496, "94.9 %", "95 %"), (0.95, "95 %", "95 %"), (0.5001, "50 %", "50.1 %")]
)
def test_percent_down_and_up_never_cross_a_threshold(share: float, down: str, up: str) -> None:
    assert (percent_down(share), percent_up(share)) == (down, up)


def test_a_text_lists_five_names() -> None:
    assert (listed(""), listed("abcde"), listed("abcdefg")) == ("", "a, b, c, d, e", "a, b, c, d, e and 2 more")
    assert listed("ab", "; ") == "a; b"
