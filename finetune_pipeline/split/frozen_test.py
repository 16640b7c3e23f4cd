"""Keep the assignments of earlier splits in a file, so that test rows stay test rows across retrainings.

    data/TASK/frozen_test.jsonl, committed with the task; hashes only, no text
    {"seed": 11, "split": "test", "id": "9f1c20e4a7b35d68", "prompt_hash": "77ab01c2d3e4f506", "signature": "kPO1…"}
    {"seed": 11, "split": "train", "id": "0b3a…", "prompt_hash": "51c2…"}

Rows that are removed from the data stay in the file: when they return, or the same prompt returns under another id,
they get the same split. A reworded test row is recognized by the MinHash signature of its prompt (signatures.py).
Similarity is estimated, so rows slightly below the threshold count as test rows as well.

Which passages many rows share changes with the data: the header of a web form becomes one with its fiftieth row. So
there is a signature of the full prompt too (`full_signature`, where it differs), and either one recognizes a row. By
full signatures, all rows with one long header look similar to a test row with that header: a test row that matches as
many new rows as make a shared passage is ignored there.

Assignments belong to a seed: another `split.seed` draws a new test set, and returning to the old seed restores the old
one. The file is written only for a split that passed its gate. If it is missing beside such a split, that is an error:
without it, rows that were trained on could become test rows unnoticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from upath import UPath

from finetune_pipeline.clean.passages import MANY
from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.records import Example, content_id, dumps
from finetune_pipeline.split.leakage import RowSimilarity, earlier_prompts, user_text
from finetune_pipeline.split.quotas import SPLITS, SplitName
from finetune_pipeline.split.signatures import check_encoded, decode, encode, sign, similar_pairs
from finetune_pipeline.store import TaskStore, write_atomic

RESTORE = (
    "restore it from version control or a backup; without it, rows that were trained on could become test rows "
    "unnoticed. If there is none, remove it and declare another `split.seed`"
)


@dataclass(frozen=True, slots=True)
class FrozenRow:
    """The split of a row, the hash of its prompt, and for test rows the signatures of the prompt: without the passages
    that many rows shared at the time, and of the full prompt ("" where both are equal)."""

    split: SplitName
    prompt_hash: str
    signature: str = ""
    full_signature: str = ""


FrozenRows: TypeAlias = Mapping[str, FrozenRow]  # by row id


def frozen_file(store: TaskStore) -> UPath:
    return store.root / "frozen_test.jsonl"


def load_frozen_rows(store: TaskStore, seed: int) -> FrozenRows:
    """The rows assigned with this seed; empty before the first split.

    StorageError when the file is damaged, or has no rows of a seed with which a split passed before.
    """
    frozen_rows = _read(frozen_file(store)).get(seed, {})
    if not frozen_rows and any(_passed_with_seed(manifest, seed) for manifest in store.manifests("data_split")):
        raise StorageError(
            f"{frozen_file(store)}, the file of frozen test rows, is missing or has no rows of `split.seed: {seed}`, "
            "though rows were split with this seed before",
            "restore it from version control or a backup (it is committed with the task); to start a new test set "
            "on purpose, declare another `split.seed`",
        )
    return frozen_rows


def save_frozen_rows(store: TaskStore, seed: int, frozen_rows: FrozenRows) -> bool:
    """Write `frozen_rows` as those of this seed; rows of other seeds stay. Returns whether the file changed."""
    path = frozen_file(store)
    by_seed = _read(path)
    changed = by_seed.get(seed, {}) != frozen_rows
    if changed:
        write_atomic(path, "".join(_lines({**by_seed, seed: frozen_rows})))
    return changed


def frozen_splits(rows: Sequence[Example], frozen_rows: FrozenRows) -> dict[str, SplitName]:
    """The split of each row that is frozen, by id: found by its id, else by its prompt (test before training)."""
    by_prompt: dict[str, SplitName] = {}
    for frozen in frozen_rows.values():
        if by_prompt.get(frozen.prompt_hash) != "test":
            by_prompt[frozen.prompt_hash] = frozen.split
    found = {
        row.id: frozen_rows[row.id].split if row.id in frozen_rows else by_prompt.get(prompt_hash(row)) for row in rows
    }
    return {id_: split for id_, split in found.items() if split is not None}


def reworded_test_rows(
    rows: Sequence[Example], frozen: Mapping[str, SplitName], frozen_rows: FrozenRows, similarity: RowSimilarity
) -> dict[str, str]:
    """New rows (not in `frozen`) that are near duplicates of a frozen test row, or conversations that begin with its
    prompt: the id of each, and of the test row. The test row may have been removed from the data."""
    new = [row for row in rows if row.id not in frozen]
    return {**_near_test_rows(new, frozen_rows, similarity), **_continued_test_rows(new, frozen_rows)}


def _continued_test_rows(new: Sequence[Example], frozen_rows: FrozenRows) -> dict[str, str]:
    test = {row.prompt_hash: id_ for id_, row in frozen_rows.items() if row.split == "test"}
    hashes = ((row.id, content_id(prompt)) for row in new for prompt in earlier_prompts(row))
    return {id_: test[hashed] for id_, hashed in hashes if hashed in test}


def _near_test_rows(new: Sequence[Example], frozen_rows: FrozenRows, similarity: RowSimilarity) -> dict[str, str]:
    test = {id_: row for id_, row in frozen_rows.items() if row.signature}
    threshold = similarity.texts.threshold
    if not new or not test or threshold >= 1:
        return {}
    prompts = sign(new, similarity)
    distinctive = similar_pairs(
        prompts.distinctive, decode([row.signature for row in test.values()]), prompts.required, threshold
    )
    full = similar_pairs(
        prompts.full,
        decode([row.full_signature or row.signature for row in test.values()]),
        np.full(len(new), threshold),
        threshold,
        fewer_than=MANY,
    )
    ids = list(test)
    nearest: dict[str, str] = {}
    for i, j in (*distinctive, *full):
        nearest.setdefault(new[i].id, ids[j])
    return nearest


def with_split(
    frozen_rows: FrozenRows, rows: Sequence[Example], split_of: Mapping[str, SplitName], similarity: RowSimilarity
) -> FrozenRows:
    """`frozen_rows` with the rows of this split; rows that were dropped or removed keep their earlier entry."""
    added = {row.id: FrozenRow(split_of[row.id], prompt_hash(row)) for row in rows if row.id in split_of}
    tests = [row for row in rows if row.id in added and added[row.id].split == "test"]
    if tests:
        prompts = sign(tests, similarity)
        for row, distinctive, full in zip(tests, encode(prompts.distinctive), encode(prompts.full), strict=True):
            differing = full if full != distinctive else ""
            added[row.id] = replace(added[row.id], signature=distinctive, full_signature=differing)
    return {**frozen_rows, **added}


def prompt_hash(row: Example) -> str:
    """Hash of all that the user says in the row, normalized."""
    return content_id(user_text(row))


def _passed_with_seed(manifest: Mapping[str, object], seed: int) -> bool:
    """Whether this split used the seed and passed its gate: only then is the file written."""
    declared, verdict = manifest.get("declaration"), manifest.get("verdict")
    used = declared.get("split", {}).get("seed") if isinstance(declared, dict) else None
    return used == seed and isinstance(verdict, dict) and bool(verdict.get("passed"))


def _lines(by_seed: Mapping[int, FrozenRows]) -> Iterator[str]:
    """A line per row, by seed, test rows first, then by id: a diff shows what a split added."""
    for seed, frozen_rows in sorted(by_seed.items()):
        for id_, frozen in sorted(frozen_rows.items(), key=lambda item: (item[1].split != "test", item[0])):
            signed = {"signature": frozen.signature, "full_signature": frozen.full_signature}
            row = {"seed": seed, "split": frozen.split, "id": id_, "prompt_hash": frozen.prompt_hash}
            yield dumps({**row, **{key: value for key, value in signed.items() if value}}) + "\n"


def _read(path: UPath) -> dict[int, dict[str, FrozenRow]]:
    with reading(path, RESTORE):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return {}
    by_seed: dict[int, dict[str, FrozenRow]] = {}
    for number, line in enumerate(lines, 1):
        with reading(f"{path}:{number}, the file of frozen test rows,", RESTORE):
            row = json.loads(line)
            frozen = FrozenRow(
                row["split"], row["prompt_hash"], row.get("signature", ""), row.get("full_signature", "")
            )
            by_seed.setdefault(row["seed"], {})[row["id"]] = _checked(frozen)
    return by_seed


def _checked(frozen: FrozenRow) -> FrozenRow:
    """The same row. ValueError for an unknown split or a signature of another length."""
    if frozen.split not in SPLITS:
        raise ValueError(f"split {frozen.split!r} is not one of {', '.join(SPLITS)}")
    for encoded in (frozen.signature, frozen.full_signature):
        if encoded:
            check_encoded(encoded)
    return frozen
