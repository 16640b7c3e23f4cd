"""The records of review rounds: a round (one random draw), the gate's results in it, and the history of both. Pure.

    Round(number=2, analysis=2, seed=7, salt="7:2:3fa9…", cutoff="1f3a…", drawn=frozenset({("9f1c…", "77ab…")}))
    GateResult(passed=False, right=60, rows=72, about="3fa9…", rules_hash="51c2…", at="2026-01-05T10:00:00+00:00")

Rows are drawn by sampling.py; history.py stores the records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeAlias

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Json, Review, content_id, dumps

RowVersion: TypeAlias = tuple[str, str]  # id and content hash of a row: what a verdict is about
ReviewsByRow: TypeAlias = Mapping[RowVersion, Sequence[Review]]


@dataclass(frozen=True, slots=True)
class Round:
    """One random draw.

    `analysis`: number of the interim analysis of this data, from 1 (bounds.py); a row is in the sample when the hash of
    `salt` and its id is at most `cutoff`; `drawn`: all rows drawn in this round so far, as they were; `gone`: how many
    of them are no longer in the data and count as wrong; `population`: rows that the estimate is about (None: unknown).
    """

    number: int = 1
    analysis: int = 1
    seed: int = 0
    salt: str = ""
    cutoff: str = ""
    drawn: frozenset[RowVersion] = frozenset()
    gone: int = 0
    population: int | None = None

    def to_json(self) -> dict[str, Json]:
        return {**asdict(self), "drawn": [list(version) for version in sorted(self.drawn)]}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Round:
        """TypeError or KeyError names a wrong or missing key."""
        return Round(**{**plain, "drawn": frozenset((id_, content) for id_, content in plain["drawn"])})


@dataclass(frozen=True, slots=True)
class GateResult:
    """The gate's result at the end of a round: `right` of `rows` rows, for the data with content hash `about`, by the
    rules with this hash, at a time (UTC, ISO 8601)."""

    passed: bool
    right: int
    rows: int
    about: str
    rules_hash: str
    at: str


@dataclass(frozen=True)
class History:
    """The rounds with at least one verdict, in order, and the gate's results by the number of the round."""

    rounds: tuple[Round, ...] = ()
    gate_results: Mapping[int, tuple[GateResult, ...]] = field(default_factory=dict)

    def results_in(self, number: int) -> tuple[GateResult, ...]:
        return self.gate_results.get(number, ())

    def with_round(self, added: Round) -> History:
        """The history with this round. A round whose verdicts are all recorded ones may not be stored."""
        known = added.number in {stored.number for stored in self.rounds}
        return self if known else replace(self, rounds=(*self.rounds, added))


def rules_hash(rules: ReviewRules) -> str:
    """Hash of the review's settings that affect the gate."""
    return content_id(dumps(rules.model_dump(mode="json", exclude={"recorded", "max_flagged"})))
