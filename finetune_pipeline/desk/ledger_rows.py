"""Read the ledgers of the artifacts: dropped and fixed rows, their counts, and the texts of rows.

    entries(chain(store), "dropped")[0]
    Entry("9f1c…", "tickets.csv:12", "clean_examples", "near-duplicate", "of 77ab…")

Artifacts are immutable, so that the files of the last few artifacts are cached in memory. Each stage writes its own
ledger; the page is ledger.py.
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

ROW_ASSETS = ("raw_examples", "clean_examples", "expert_review", "data_split")  # each is made from the one before
FILES = {"dropped": "drops.jsonl", "fixed": "fixes.jsonl"}
HEAD = b'{"id": "'  # the beginning of a row as records.dumps writes it
Offsets: TypeAlias = "tuple[array[int], array[int]]"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger; `why` is the reason of a drop or the rule of a fix."""

    id: str
    origin: str
    asset: str
    why: str
    detail: str


@dataclass(frozen=True, slots=True)
class Text:
    """The texts of a row, with personal data masked: raw rows contain it."""

    prompt: str
    completion: str
    rejected: str = ""


def chain(store: TaskStore) -> dict[str, Artifact]:
    """The current artifacts of ROW_ASSETS, by asset. It ends before the first that is missing or was made from older
    rows, so that the counts add up."""
    chained: dict[str, Artifact] = {}
    before: Artifact | None = None
    for asset in ROW_ASSETS:
        artifact = store.current(asset)
        if artifact is None or (before and artifact.manifest["inputs"].get(before.asset) != before.content_hash):
            break
        chained[asset] = before = artifact
    return chained


def count(artifact: Artifact, name: str) -> int:
    """The number of lines of a file of the artifact."""
    return _count(str(artifact.path(name)), artifact.content_hash)


def tally(artifacts: Mapping[str, Artifact], kind: str) -> Counter[tuple[str, str]]:
    """The number of rows for each (asset, reason or rule)."""
    counted: Counter[tuple[str, str]] = Counter()
    for asset, artifact in artifacts.items():
        reasons = _reasons(str(artifact.path(FILES[kind])), artifact.content_hash, asset)
        counted.update({(asset, why): rows for why, rows in reasons.items()})
    return counted


def entries(artifacts: Mapping[str, Artifact], kind: str) -> list[Entry]:
    """All entries of `kind` ("dropped" or "fixed"), in the order of the assets."""
    parts = [
        _entries(str(artifact.path(FILES[kind])), artifact.content_hash, asset) for asset, artifact in artifacts.items()
    ]
    return [entry for part in parts for entry in part]


def texts(artifact: Artifact, ids: Collection[str]) -> dict[str, Text]:
    """The texts of these rows by id, without unreadable rows. The file is scanned once; then each row is read by
    its offset."""
    path = artifact.path("examples.jsonl")
    with artifact.reading("examples.jsonl"):
        offsets = row_offsets(str(path), artifact.content_hash)
        with path.open("rb") as file:
            rows = {id_: _read_row(file, offsets, id_) for id_ in ids}
    return {id_: _masked_text(row) for id_, row in rows.items() if row is not None}


def masked(entry: Entry) -> Entry:
    """The entry with personal data masked in its detail, which may quote the row."""
    return replace(entry, detail=mask(entry.detail)[0])


def _masked_text(row: Example) -> Text:
    return Text(mask(row.prompt)[0], mask(row.completion)[0], mask(row.rejected or "")[0])


def _read_row(file: BinaryIO, rows: Offsets, id_: str) -> Example | None:
    keys, offsets = rows
    key = hash(id_.encode("utf-8", "surrogatepass"))
    for index in range(bisect_left(keys, key), bisect_right(keys, key)):
        file.seek(offsets[index])
        row = json.loads(file.readline())
        if row["id"] == id_:
            return Example.from_json(row)
    return None


@lru_cache(maxsize=4)
def row_offsets(path: str, content: str) -> Offsets:
    """The offset of each row of a file: sorted hashes of the ids, and offsets in bytes; 16 bytes per row. Two ids may
    have the same hash: the id is compared when the row is read."""
    import numpy as np

    hashes, offsets, position = array("q"), array("q"), 0
    with Path(path).open("rb") as lines:
        for line in lines:
            if line.startswith(HEAD):
                hashes.append(hash(line[len(HEAD) : line.find(b'"', len(HEAD))]))
                offsets.append(position)
            position += len(line)
    keys, positions = (np.frombuffer(numbers, np.int64) for numbers in (hashes, offsets))
    order = np.argsort(keys)
    return array("q", keys[order].tobytes()), array("q", positions[order].tobytes())


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
    rows = read_jsonl(file) if file.exists() else ()  # a stage without fixes writes no fixes.jsonl
    with reading(file, f"delete {file.parent} and run again"):
        return tuple(
            Entry(row["id"], row["origin"], asset, row.get("reason") or row["rule"], row.get("detail", ""))
            for row in rows
        )
