"""The ledger: one line for each row that was dropped (drops.jsonl) and for each fix of a row (fixes.jsonl).

{"id": "9f1c20e4a7b35d68", "origin": "tickets.csv:12", "stage": "clean", "reason": "too-long", "detail": "…"}
{"id": "77ab01c2d3e4f506", "origin": "tickets.csv:40", "stage": "clean", "rule": "pii-email", "detail": "2 times"}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fix:
    """A row that was changed. `rule` is a slug such as "html" or "pii-email"."""

    id: str
    origin: str
    stage: str
    rule: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Drop:
    """A row that was dropped. `reason` is a slug such as "exact-duplicate"; `detail` names the evidence (the id of the
    row it duplicates, the error of the JSON Schema), never personal data."""

    id: str
    origin: str
    stage: str
    reason: str
    detail: str = ""


def counted(reasons: Mapping[str, int]) -> str:
    """The reasons of drops with their counts, the most frequent first: "invalid-json: 5, missing-column: 3"."""
    return ", ".join(f"{reason}: {count}" for reason, count in Counter(reasons).most_common())
