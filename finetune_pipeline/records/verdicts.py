"""Verdicts: those of reviewers on single rows (`Review`) and those of gates on artifacts (`Verdict` with `Check`s).

Verdict("data_quality", False, about="5b0a1c9e7f3d2468", summary="91.2 % of 754 rows pass, 95 % required",
        checks=(Check("row_ok", False, "95 % of the rows pass every rule", "91.2 %"),))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from finetune_pipeline.records.jsonl import Json

ReviewDecision: TypeAlias = Literal["approve", "reject", "edit"]


@dataclass(frozen=True, slots=True)
class Review:
    """The verdict of one reviewer on one row. `content_hash` is `Example.content_hash` of the row as it was shown;
    `completion` is set for an edit; `recorded` is true for a verdict from a file (`review.recorded`)."""

    id: str
    content_hash: str
    reviewer: str
    decision: ReviewDecision
    at: str
    completion: str | None = None
    note: str = ""
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of a verdict, in words for people: what is expected, what was observed, whether it passed.
    A failed check of severity "warning" does not fail the verdict. `value` is what was observed as a number, where it
    is one (a share, a count, a loss): Dagster plots it over runs."""

    name: str
    passed: bool
    expected: str
    observed: str
    severity: Literal["error", "warning"] = "error"
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a gate. `about` is the content hash of the artifact that was checked: the next step reads the
    verdict again and raises GateRefused when the hash differs from that of the data it uses. A check of an artifact on
    itself, which no step requires, has its key."""

    gate: str
    passed: bool
    about: str
    summary: str
    checks: tuple[Check, ...] = ()
    figures: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The verdict as it is written in a manifest."""
        return asdict(self)

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_json`. KeyError or TypeError where a key is missing or unknown."""
        checks = tuple(Check(**c) for c in row["checks"])
        return Verdict(row["gate"], row["passed"], row["about"], row["summary"], checks, dict(row["figures"]))
