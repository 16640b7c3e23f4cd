"""What earlier splits decided, so that test rows stay test rows across retrainings.

    data/TASK/frozen_test.jsonl, to be committed with the task: hashes only, no text
    {"seed": 11, "split": "test", "id": "9f1c20e4a7b35d68", "prompt": "77ab01c2d3e4f506", "signature": "kPO1…"}
    {"seed": 11, "split": "train", "id": "0b3a…", "prompt": "51c2…"}

Rows that vanish are remembered too: when they come back, or the same question comes back under another id, it is still
known which side it was on. A reworded test row is recognized by its MinHash signature: 126 hashes of 8 bits of what the
question says beyond what many rows share (Li and König, "b-Bit Minwise Hashing", WWW 2010), from which no text can be
read. The estimate is off by 0.04 (one standard error), so rows that are nearly near enough count as test rows as well.

What many rows share changes with the data: a web form's header does when its fiftieth row comes. So the whole question
is signed too (`whole`, where it differs), and either way of comparing recognizes a row. As wholes a test row resembles
every other behind one long header: where it does so with as many new rows as make a passage, that says nothing.

The memory belongs to the seed: another `split.seed` deliberately draws a new test set (and returning to the old seed
finds the old one). The file is written only for a split that passed its check, and its absence beside such a split is
an error: without it trained rows could become test rows unnoticed. What it is not: the rules that use it
(assignment.py).
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from upath import UPath

from finetune_pipeline.clean.minhash import HASHES, band_keys, bands_for, signatures
from finetune_pipeline.clean.passages import MANY
from finetune_pipeline.clean.shingles import Grams, grams_of, take_rows
from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.records import Example, content_id, dumps
from finetune_pipeline.split.assignment import SplitName
from finetune_pipeline.split.leakage import Alike, asked
from finetune_pipeline.store import TaskStore, write_atomic

MARGIN = 0.08  # two standard errors of the estimated similarity: of what is just near enough one in 40 is missed
CHANCE = 1 / 256  # how often two different hashes have the same lowest 8 bits
RESTORE = (
    "restore it from version control or a backup; without it trained rows could become test rows unnoticed. If there "
    "is none, remove it and declare another `split.seed`"
)
_SAME_KEY = 64  # frozen rows of one key that a row is compared with, in each band


@dataclass(frozen=True, slots=True)
class Decided:
    """The side a row was put on, the hash of its question, and (test rows) the signatures of what it asks: without
    what many rows shared then, and whole where that is something else."""

    split_name: SplitName
    prompt: str
    signature: str = ""
    whole: str = ""


Memory: TypeAlias = Mapping[str, Decided]


def frozen_file(store: TaskStore) -> UPath:
    return store.root / "frozen_test.jsonl"


def recall(store: TaskStore, seed: int) -> Memory:
    """The sides decided under this seed, by row id; empty before the first split.

    StorageError when the file is damaged, or says nothing of a seed with which rows were split before.
    """
    memory = _read(frozen_file(store)).get(seed, {})
    if not memory and any(_passed_with(manifest, seed) for manifest in store.manifests("data_split")):
        raise StorageError(
            f"{frozen_file(store)}, which says which rows are test rows for good, is missing (or says nothing of "
            f"`split.seed: {seed}`), though rows were split with this seed before",
            "restore it from version control or a backup (it is committed with the task); to begin a new test set "
            "on purpose, declare another `split.seed`",
        )
    return memory


def remember(store: TaskStore, seed: int, memory: Memory) -> bool:
    """Keep `memory` as the decisions of this seed; those of other seeds stay. Whether the file had to be written."""
    path = frozen_file(store)
    seeds = _read(path)
    changed = seeds.get(seed, {}) != memory
    if changed:
        write_atomic(path, "".join(_lines({**seeds, seed: memory})))
    return changed


def known_splits(rows: Sequence[Example], memory: Memory) -> dict[str, SplitName]:
    """The side of each row that was decided before: by its id, else by its question (test wins over training)."""
    prompts: dict[str, SplitName] = {}
    for decided in memory.values():
        if prompts.get(decided.prompt) != "test":
            prompts[decided.prompt] = decided.split_name
    found = {row.id: memory[row.id].split_name if row.id in memory else prompts.get(prompt(row)) for row in rows}
    return {id_: split_name for id_, split_name in found.items() if split_name is not None}


def resembling(rows: Sequence[Example], known: Mapping[str, SplitName], memory: Memory, alike: Alike) -> dict[str, str]:
    """New rows (not `known`) that are near duplicates of a frozen test row: the id of each, and that of the test row.
    The test row need not be among the rows any more."""
    new = [row for row in rows if row.id not in known]
    frozen = {id_: decided for id_, decided in memory.items() if decided.signature}
    threshold = alike.similarity.threshold
    if not new or not frozen or threshold >= 1:
        return {}
    places = alike.similarity.at[[alike.at[row.id] for row in new]]
    bare = _near(
        _signed(take_rows(places, alike.similarity.grams)),
        _read_signatures([one.signature for one in frozen.values()]),
        alike.similarity.least[places],
        threshold,
    )
    whole = _near(
        _signed(grams_of([asked(row) for row in new])),
        _read_signatures([one.whole or one.signature for one in frozen.values()]),
        np.full(len(new), threshold),
        threshold,
        fewer_than=MANY,
    )
    ids = list(frozen)
    nearest: dict[str, str] = {}
    for i, j in (*bare, *whole):
        nearest.setdefault(new[i].id, ids[j])
    return nearest


def _near(
    ours: npt.NDArray[np.uint8],
    theirs: npt.NDArray[np.uint8],
    need: npt.NDArray[np.float64],
    threshold: float,
    fewer_than: int | None = None,
) -> list[tuple[int, int]]:
    """Pairs (position in ours, in theirs) whose estimated similarity is what ours `need`, or nearly, in order; those of
    theirs that resemble not `fewer_than` so many of ours are left out."""
    most = len(ours) + 1 if fewer_than is None else fewer_than
    found: set[tuple[int, int]] = set()
    crowded: set[int] = set()
    for i, j in _sharing_a_band(ours, theirs, *bands_for(threshold)):
        estimate = ((ours[i] == theirs[j]).mean(axis=1) - CHANCE) / (1 - CHANCE)
        hit = estimate >= need[i] - MARGIN
        many = np.bincount(j[hit], minlength=len(theirs)) >= most  # a pair comes once in a piece
        crowded.update(np.flatnonzero(many).tolist())
        hit &= ~many[j]
        found.update(zip(i[hit].tolist(), j[hit].tolist(), strict=True))
    count = Counter(j for _, j in found)
    return sorted((i, j) for i, j in found if j not in crowded and count[j] < most)


def extended(memory: Memory, rows: Sequence[Example], split_of: Mapping[str, SplitName], alike: Alike) -> Memory:
    """The memory with this split's decisions; rows that were dropped or are gone keep what was said of them before."""
    decided = {row.id: Decided(split_of[row.id], prompt(row)) for row in rows if row.id in split_of}
    tests = [row for row in rows if row.id in decided and decided[row.id].split_name == "test"]
    if tests:
        places = alike.similarity.at[[alike.at[row.id] for row in tests]]
        bare = _written(_signed(take_rows(places, alike.similarity.grams)))
        whole = _written(_signed(grams_of([asked(row) for row in tests])))
        for row, one, other in zip(tests, bare, whole, strict=True):
            decided[row.id] = replace(decided[row.id], signature=one, whole=other if other != one else "")
    return {**memory, **decided}


def prompt(row: Example) -> str:
    """Fingerprint of what the row asks."""
    return content_id(asked(row))


def _signed(grams: Grams) -> npt.NDArray[np.uint8]:
    """The lowest 8 bits of each hash: rows × HASHES."""
    return (signatures(grams) & np.uint32(0xFF)).astype(np.uint8)


def _written(signed: npt.NDArray[np.uint8]) -> list[str]:
    return [base64.b64encode(row.tobytes()).decode() for row in signed]


def _read_signatures(written: Sequence[str]) -> npt.NDArray[np.uint8]:
    return np.stack([np.frombuffer(base64.b64decode(one), np.uint8) for one in written])


def _sharing_a_band(
    ours: npt.NDArray[np.uint8], theirs: npt.NDArray[np.uint8], bands: int, width: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Positions (ours, theirs) of signatures that agree in a band, in pieces."""
    for start in range(0, bands * width, width):
        keys, wanted = band_keys(theirs[:, start : start + width]), band_keys(ours[:, start : start + width])
        order = np.argsort(keys, kind="stable")
        first = np.searchsorted(keys[order], wanted)
        for step in range(_SAME_KEY):
            at = (first + step).clip(max=len(order) - 1)
            same = np.flatnonzero((keys[order[at]] == wanted) & (first + step < len(order)))
            if not len(same):
                break
            yield same, order[at[same]]


def _passed_with(manifest: Mapping[str, object], seed: int) -> bool:
    """Whether this split was made with the seed and passed: only then the memory was written."""
    declared, verdict = manifest.get("declaration"), manifest.get("verdict")
    made_with = declared.get("split", {}).get("seed") if isinstance(declared, dict) else None
    return made_with == seed and isinstance(verdict, dict) and bool(verdict.get("passed"))


def _lines(seeds: Mapping[int, Memory]) -> Iterator[str]:
    """A line a row, by seed, test rows first, then by id: a version control shows what a split added."""
    for seed, memory in sorted(seeds.items()):
        for id_, decided in sorted(memory.items(), key=lambda item: (item[1].split_name != "test", item[0])):
            said = {"signature": decided.signature, "whole": decided.whole}
            signed = {key: value for key, value in said.items() if value}
            row = {"seed": seed, "split": decided.split_name, "id": id_, "prompt": decided.prompt, **signed}
            yield dumps(row) + "\n"


def _read(path: UPath) -> dict[int, dict[str, Decided]]:
    with reading(path, RESTORE):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return {}
    seeds: dict[int, dict[str, Decided]] = {}
    for number, line in enumerate(lines, 1):
        with reading(f"{path}:{number}: the file that says which rows are test rows for good", RESTORE):
            row = json.loads(line)
            decided = Decided(row["split"], row["prompt"], row.get("signature", ""), row.get("whole", ""))
            seeds.setdefault(row["seed"], {})[row["id"]] = _sound(decided)
    return seeds


def _sound(decided: Decided) -> Decided:
    if decided.split_name not in ("train", "validation", "test"):
        raise ValueError(f"side {decided.split_name!r} is none of train, validation, test")
    signed = [one for one in (decided.signature, decided.whole) if one]
    if any(len(base64.b64decode(one, validate=True)) != HASHES for one in signed):
        raise ValueError(f"a signature is {HASHES} bytes")
    return decided
