"""The ledger as the desk reads it: which rows left or were mended, where, why; counted, filtered, a page at a time.

    entries(chain, "dropped")       Entry("9f1c…", "tickets.csv:12", "clean_examples", "near-duplicate", "of 77ab…")

Artifacts never change once they are finished, so what is read from them is kept in memory, a few artifacts' worth.
What it is not: the writing of the ledger (each stage does that), or the page (ledger.py).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from finetune_pipeline.records import Artifact, Example, read_jsonl
from finetune_pipeline.store import TaskStore

STAGES = ("raw_examples", "clean_examples", "expert_review", "data_split")
FILES = {"dropped": "drops.jsonl", "mended": "changes.jsonl"}
MADE_FROM = {
    "clean_examples": "raw_examples",
    "expert_review": "clean_examples",
    "data_split": "expert_review",
}
ID = re.compile(r'\{"id": "([^"\\]+)"')


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger; `why` is the reason of a drop or the rule of a change."""

    id: str
    origin: str
    asset: str
    why: str
    detail: str


def chain(store: TaskStore) -> dict[str, Artifact]:
    """The finished stages of the rows that were made from one another, by asset. It ends before the first that is
    missing or was made from older rows: only then do the counts add up."""
    found: dict[str, Artifact] = {}
    for asset in STAGES:
        artifact = store.current(asset)
        before = MADE_FROM.get(asset)
        if artifact is None or (before and artifact.manifest["inputs"].get(before) != found[before].content):
            break
        found[asset] = artifact
    return found


def count(artifact: Artifact, name: str) -> int:
    """Lines of one of its files."""
    return _count(str(artifact.path(name)), artifact.content)


def tally(stages: Mapping[str, Artifact], kind: str) -> Counter[tuple[str, str]]:
    """How often each (asset, reason or rule) occurs."""
    return Counter((entry.asset, entry.why) for entry in entries(stages, kind))


def entries(stages: Mapping[str, Artifact], kind: str) -> list[Entry]:
    """Every line of the ledger of `kind` ("dropped" or "mended"), in the order of the stages."""
    parts = [_entries(str(artifact.path(FILES[kind])), artifact.content, asset) for asset, artifact in stages.items()]
    return [entry for part in parts for entry in part]


def texts(raw: Artifact, ids: Collection[str]) -> dict[str, Example]:
    """The rows of these ids as they were read; rows that could not be read are not there. Reads until all are found."""
    wanted, found = set(ids), dict[str, Example]()
    for line in _lines(raw.path("examples.jsonl")):
        match = ID.match(line)
        if match and match.group(1) in wanted:
            found[match.group(1)] = Example.from_json(json.loads(line))
            if len(found) == len(wanted):
                break
    return found


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        yield from lines


@lru_cache(maxsize=64)
def _count(path: str, content: str) -> int:
    return sum(1 for line in _lines(Path(path)) if line.strip())


@lru_cache(maxsize=12)
def _entries(path: str, content: str, asset: str) -> tuple[Entry, ...]:
    file = Path(path)
    rows = read_jsonl(file) if file.exists() else ()  # a stage that mends nothing writes no changes.jsonl
    return tuple(
        Entry(row["id"], row["origin"], asset, row.get("reason") or row["rule"], row.get("detail", "")) for row in rows
    )
