"""Rows that the experts see besides the random sample: pairs that ask nearly the same and answer differently.

Cleaning keeps such pairs, since either may be right (clean/duplicates.py); the most alike of them are shown here. They
are no part of the random sample: they are the likeliest mistakes, not typical rows, so the gate's estimate does not
count them, and the run does not wait for them. A verdict on one is applied to the data like any other.

    flagged.jsonl    {"similarity": 0.97, "rows": [{"id": "9f1c…", ...}, {"id": "0b3a…", ...}]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from finetune_pipeline.records import Artifact, Example, read_jsonl

FILE = "flagged.jsonl"


@dataclass(frozen=True, slots=True)
class Flagged:
    """Two rows that ask nearly the same and answer differently."""

    similarity: float
    rows: tuple[Example, Example]

    def to_json(self) -> dict[str, Any]:
        return {"similarity": self.similarity, "rows": [row.to_json() for row in self.rows]}


def flag(clean: Artifact, rows: Iterable[Example], most: int) -> list[Flagged]:
    """The first `most` of the conflicts that cleaning found (the most alike come first), with their rows."""
    path = clean.path("conflicts.jsonl")
    first = list(islice(read_jsonl(path), most)) if path.exists() else []
    wanted = {id_ for line in first for id_ in line["rows"]}
    by_id = {row.id: row for row in rows if row.id in wanted}
    return [Flagged(line["similarity"], (by_id[line["rows"][0]], by_id[line["rows"][1]])) for line in first]


def flagged_in(sample: Artifact) -> list[Flagged]:
    """What was flagged when this sample was drawn; nothing for a sample drawn by an older version."""
    path = sample.path(FILE)
    lines = read_jsonl(path) if path.exists() else ()
    return [Flagged(line["similarity"], tuple(map(Example.from_json, line["rows"]))) for line in lines]  # type: ignore[arg-type]


def flagged_rows(flagged: Iterable[Flagged], sampled: Sequence[Example] = ()) -> list[Example]:
    """Each row once, without those that are in the sample anyway."""
    known = {row.id for row in sampled}
    return list({row.id: row for pair in flagged for row in pair.rows if row.id not in known}.values())
