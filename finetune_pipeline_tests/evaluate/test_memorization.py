"""Rows that were learned by heart have lower losses than other rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_pipeline.evaluate.memorization import memorized


def test_memorization_of_rows_with_equal_losses_is_chance() -> None:
    found = memorized([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    low, high = interval(found)
    assert found["auc"] == 0.5
    assert low < 0.5 < high


def test_memorization_of_rows_with_lower_losses_is_detected() -> None:
    found = memorized([0.1 + i / 100 for i in range(30)], [1.0 + i / 100 for i in range(30)])
    assert (found["auc"], interval(found)[0]) == (1.0, 1.0)
    assert memorized([1.0] * 5 + [3.0] * 5, [2.0] * 10)["auc"] == 0.5


def interval(found: Mapping[str, Any]) -> tuple[float, float]:
    low, high = found["interval"]
    return low, high
