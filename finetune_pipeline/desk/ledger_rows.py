"""The ledger as the desk reads it: which rows left or were fixed, where, why; counted, filtered, a page at a time.

    entries(chain, "dropped")       Entry("9f1c…", "tickets.csv:12", "clean_examples", "near-duplicate", "of 77ab…")

Artifacts never change once they are finished, so what is read from them is kept in memory, a few artifacts' worth.
What it is not: the writing of the ledger (each stage does that), or the page (ledger.py).
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeAlias

from finetune_pipeline.clean.pii import mask
from finetune_pipeline.errors import reading
from finetune_pipeline.records import Artifact, Example, read_jsonl
from finetune_pipeline.store import TaskStore

STAGES = ("raw_examples", "clean_examples", "expert_review", "data_split")
FILES = {"dropped": "drops.jsonl", "fixed": "fixes.jsonl"}
MADE_FROM = {
    "clean_examples": "raw_examples",
    "expert_review": "clean_examples",
    "data_split": "expert_review",
}
HEAD = b'{"id": "'  # as records.dumps writes a row; ids are hexadecimal digits
Places: TypeAlias = "tuple[array[int], array[int]]"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger; `why` is the reason of a drop or the rule of a change."""

    id: str
    origin: str
    asset: str
    why: str
    detail: str


@dataclass(frozen=True, slots=True)
class Text:
    """What a row says, with personal data masked: rows as they were read hold it in clear."""

    prompt: str
    completion: str


def chain(store: TaskStore) -> dict[str, Artifact]:
    """The finished stages of the rows that were made from one another, by asset. It ends before the first that is
    missing or was made from older rows: only then do the counts add up."""
    found: dict[str, Artifact] = {}
    for asset in STAGES:
        artifact = store.current(asset)
        before = MADE_FROM.get(asset)
        if artifact is None or (before and artifact.manifest["inputs"].get(before) != found[before].content_hash):
            break
        found[asset] = artifact
    return found


def count(artifact: Artifact, name: str) -> int:
    """Lines of one of its files."""
    return _count(str(artifact.path(name)), artifact.content_hash)


def tally(stages: Mapping[str, Artifact], kind: str) -> Counter[tuple[str, str]]:
    """How often each (asset, reason or rule) occurs."""
    counted: Counter[tuple[str, str]] = Counter()
    for asset, artifact in stages.items():
        reasons = _reasons(str(artifact.path(FILES[kind])), artifact.content_hash, asset)
        counted.update({(asset, why): rows for why, rows in reasons.items()})
    return counted


def entries(stages: Mapping[str, Artifact], kind: str) -> list[Entry]:
    """Every line of the ledger of `kind` ("dropped" or "fixed"), in the order of the stages."""
    parts = [
        _entries(str(artifact.path(FILES[kind])), artifact.content_hash, asset) for asset, artifact in stages.items()
    ]
    return [entry for part in parts for entry in part]


def texts(artifact: Artifact, ids: Collection[str]) -> dict[str, Text]:
    """The texts of these rows; rows that could not be read are not there. Seeks to each row: a file is scanned once."""
    path = artifact.path("examples.jsonl")
    with artifact.reading("examples.jsonl"):
        places = row_places(str(path), artifact.content_hash)
        with path.open("rb") as file:
            found = {id_: _row_at(file, places, id_) for id_ in ids}
    return {id_: _masked_text(row) for id_, row in found.items() if row is not None}


def masked(entry: Entry) -> Entry:
    """The entry with personal data in its detail masked: a detail may quote the row."""
    return replace(entry, detail=mask(entry.detail)[0])


def _masked_text(row: Example) -> Text:
    return Text(mask(row.prompt)[0], mask(row.completion)[0])


def _row_at(file: BinaryIO, places: Places, id_: str) -> Example | None:
    keys, offsets = places
    key = hash(id_.encode("utf-8", "surrogatepass"))
    for place in range(bisect_left(keys, key), bisect_right(keys, key)):
        file.seek(offsets[place])
        row = json.loads(file.readline())
        if row["id"] == id_:
            return Example.from_json(row)
    return None


@lru_cache(maxsize=4)
def row_places(path: str, content: str) -> Places:
    """Where each row of a file begins: hashes of ids, sorted, and offsets in bytes; 16 bytes a row are kept. Two ids
    may share a hash, so that the id itself is compared when the row is read."""
    import numpy as np

    hashes, offsets, at = array("q"), array("q"), 0
    with Path(path).open("rb") as lines:
        for line in lines:
            if line.startswith(HEAD):
                hashes.append(hash(line[len(HEAD) : line.find(b'"', len(HEAD))]))
                offsets.append(at)
            at += len(line)
    keys, places = (np.frombuffer(numbers, np.int64) for numbers in (hashes, offsets))
    order = np.argsort(keys)
    return array("q", keys[order].tobytes()), array("q", places[order].tobytes())


def _lines(path: Path) -> Iterator[str]:
    with reading(path, f"delete {path.parent} and run again"), path.open(encoding="utf-8") as lines:
        yield from lines


@lru_cache(maxsize=64)
def _count(path: str, content: str) -> int:
    return sum(1 for line in _lines(Path(path)) if line.strip())


@lru_cache(maxsize=64)
def _reasons(path: str, content: str, asset: str) -> Counter[str]:
    return Counter(entry.why for entry in _entries(path, content, asset))


@lru_cache(maxsize=12)
def _entries(path: str, content: str, asset: str) -> tuple[Entry, ...]:
    file = Path(path)
    rows = read_jsonl(file) if file.exists() else ()  # a stage that fixes nothing writes no fixes.jsonl
    with reading(file, f"delete {file.parent} and run again"):
        return tuple(
            Entry(row["id"], row["origin"], asset, row.get("reason") or row["rule"], row.get("detail", ""))
            for row in rows
        )
