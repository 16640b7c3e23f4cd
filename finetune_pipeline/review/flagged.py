"""Flag rows for review beside the random sample: pairs with nearly the same prompt and different completions.

    flagged.jsonl    {"similarity": 0.97, "rows": [{"id": "9f1c…", ...}, {"id": "0b3a…", ...}]}

Cleaning keeps such pairs, since either may be right (clean/duplicates.py); the most similar ones are flagged. They are
the most likely mistakes, not typical rows, so they are not part of the random sample: the gate's estimate does not
count them, and the run does not wait for them. A verdict on one is applied to the data like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from finetune_pipeline.records import Artifact, Example, read_jsonl

FILE = "flagged.jsonl"


@dataclass(frozen=True, slots=True)
class Flagged:
    """Two rows with nearly the same prompt and different completions; `similarity` of the prompts from 0 to 1."""

    similarity: float
    rows: tuple[Example, Example]

    def to_json(self) -> dict[str, Any]:
        return {"similarity": self.similarity, "rows": [row.to_json() for row in self.rows]}

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Flagged:
        first, second = map(Example.from_json, plain["rows"])
        return Flagged(plain["similarity"], (first, second))


def flag(clean: Artifact, rows: Iterable[Example], limit: int) -> list[Flagged]:
    """The first `limit` conflicts that cleaning found (the most similar come first), with their rows."""
    path = clean.path("conflicts.jsonl")
    conflicts = list(islice(read_jsonl(path), limit)) if path.exists() else []
    wanted = {id_ for conflict in conflicts for id_ in conflict["rows"]}
    by_id = {row.id: row for row in rows if row.id in wanted}
    return [
        Flagged(conflict["similarity"], (by_id[conflict["rows"][0]], by_id[conflict["rows"][1]]))
        for conflict in conflicts
    ]


def flagged_in(sample: Artifact) -> list[Flagged]:
    """The pairs that were flagged when this sample was drawn; none for a sample of an older version."""
    path = sample.path(FILE)
    return [Flagged.from_json(line) for line in (read_jsonl(path) if path.exists() else ())]


def flagged_rows(flagged: Iterable[Flagged], sampled: Sequence[Example] = ()) -> list[Example]:
    """Each flagged row once, without those in the sample."""
    known = {row.id for row in sampled}
    return list({row.id: row for pair in flagged for row in pair.rows if row.id not in known}.values())
