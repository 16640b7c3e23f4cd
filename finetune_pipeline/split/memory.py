"""What earlier splits decided, so that test rows stay test rows across retrainings.

    5_split/frozen_test.json      {"11": {"9f1c20e4a7b35d68": ["test", "77ab01c2d3e4f506"], ...}}
                                   seed    row's id             side    hash of the normalised question

Rows that vanish are remembered too: when they come back, or the same question comes back under another id, it is still
known which side it was on. The memory belongs to the seed: another `split.seed` deliberately draws a new test set (and
returning to the old seed finds the old one). The file is written only for a split that passed its check.

What it is not: the rules that use it (sides.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from upath import UPath

from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import Example, content_id
from finetune_pipeline.split.overlap import asked
from finetune_pipeline.split.sides import Side
from finetune_pipeline.store import TaskStore, write_atomic

Memory: TypeAlias = Mapping[str, tuple[Side, str]]


def frozen_file(store: TaskStore) -> UPath:
    return store.stage_folder("5_split") / "frozen_test.json"


def recall(store: TaskStore, seed: int) -> Memory:
    """The sides decided under this seed, by row id; empty before the first split. StorageError when damaged."""
    rows = _read(frozen_file(store)).get(str(seed), {})
    return {id_: (side, fingerprint) for id_, (side, fingerprint) in rows.items()}


def remember(store: TaskStore, seed: int, memory: Memory) -> None:
    """Keep `memory` as the decisions of this seed; those of other seeds stay."""
    path = frozen_file(store)
    seeds = _read(path)
    if recall(store, seed) != memory:
        write_atomic(path, json.dumps({**seeds, str(seed): dict(memory)}))


def known_sides(rows: Sequence[Example], memory: Memory) -> dict[str, Side]:
    """The side of each row that was decided before: by its id, else by its question (test wins over training)."""
    questions: dict[str, Side] = {}
    for side, fingerprint in memory.values():
        if questions.get(fingerprint) != "test":
            questions[fingerprint] = side
    found = {row.id: memory[row.id][0] if row.id in memory else questions.get(question(row)) for row in rows}
    return {id_: side for id_, side in found.items() if side is not None}


def extended(memory: Memory, rows: Sequence[Example], side: Mapping[str, Side]) -> Memory:
    """The memory with this split's decisions; rows that were dropped or are gone keep what was said of them before."""
    return {**memory, **{row.id: (side[row.id], question(row)) for row in rows if row.id in side}}


def question(row: Example) -> str:
    """Fingerprint of what the row asks."""
    return content_id(asked(row))


def _read(path: UPath) -> dict[str, dict[str, tuple[Side, str]]]:
    try:
        seeds: dict[str, dict[str, tuple[Side, str]]] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except json.JSONDecodeError as error:
        raise StorageError(
            f"{path}, which says which rows are test rows for good, is damaged: {error}",
            "restore it from a backup; without it trained rows could become test rows unnoticed. If there is none, "
            "remove it and declare another `split.seed`",
        ) from error
    return seeds
