"""Make the asset data_split: three files of rows, the rows that were dropped, and the account of every raw row.

    train.jsonl, validation.jsonl, test.jsonl, drops.jsonl
    accounting.json   {"raw": 912, "splits": {"train": 520, …}, "dropped": {"clean": {"html": 14}, …}} (Account)
    outcomes.jsonl    a line per raw row:
    {"id": "9f1c20e4a7b35d68", "origin": "tickets.csv:12", "outcome": "dropped", "stage": "clean", "reason": "html"}

Rows are assigned by assignment.py and checked by gate.py. Only a split that passes the gate is frozen (frozen_test.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Artifact, Drop, Example, Json, read_jsonl, write_jsonl
from finetune_pipeline.split.accounting import Account, account
from finetune_pipeline.split.assignment import STAGE, Assignment, assign_without_overlap, rows_by_split, units
from finetune_pipeline.split.frozen_test import (
    FrozenRows,
    frozen_file,
    frozen_splits,
    load_frozen_rows,
    reworded_test_rows,
    save_frozen_rows,
    with_split,
)
from finetune_pipeline.split.gate import evaluate_split
from finetune_pipeline.split.leakage import RowSimilarity, row_similarity
from finetune_pipeline.split.quotas import SPLITS, SplitName
from finetune_pipeline.store import StageContext, StageResult


def data_split(context: StageContext) -> StageResult:
    """Split the reviewed rows. DataError when a split is empty or the rows do not reconcile."""
    rules, reviewed = context.task.split, context.inputs["expert_review"]
    rows = list(reviewed.examples())
    frozen_rows = load_frozen_rows(context.store, rules.seed)
    similarity = row_similarity(rows, rules.near_duplicate_threshold)
    frozen = frozen_splits(rows, frozen_rows)
    reworded = reworded_test_rows(rows, frozen, frozen_rows, similarity)
    slices = [context.task.answer.slice_of(row.completion) for row in rows]
    assignment, found = assign_without_overlap(rows, frozen, rules, slices, similarity, reworded)
    splits = rows_by_split(rows, assignment)
    _raise_if_empty(splits, rows, similarity)
    counts = _account(context, splits, assignment)
    _write(context, splits, assignment, counts)
    missing = _without_test_rows(slices, [context.task.answer.slice_of(row.completion) for row in splits["test"]])
    verdict = evaluate_split(found, splits, rules, missing, reviewed.content_hash, similarity)
    if verdict.passed:
        _freeze(context, with_split(frozen_rows, rows, assignment.split_of, similarity))
    context.report.log(verdict.summary)
    figures: dict[str, Json] = {
        "frozen_test_rows": sum(split == "test" for split in frozen.values()),
        "reworded_test_rows": len(reworded),
        "slices_without_test_rows": missing,
    }
    return StageResult({**_summary(counts), **figures}, verdict)


def _freeze(context: StageContext, frozen_rows: FrozenRows) -> None:
    if save_frozen_rows(context.store, context.task.split.seed, frozen_rows):
        context.report.log(f"frozen test rows changed: commit {frozen_file(context.store)} with the task")


def _raise_if_empty(
    splits: Mapping[SplitName, Sequence[Example]], rows: Sequence[Example], similarity: RowSimilarity
) -> None:
    empty = [name for name in SPLITS if not splits[name]]
    if not empty:
        return
    together = units(rows, similarity.texts.clusters())
    largest = max(map(len, together), default=0)
    groups = len({row.group for row in rows if row.group is not None})
    named = f" and {groups} declared groups" if groups else ""
    raise DataError(
        f"the split leaves {' and '.join(empty)} empty: {len(rows)} rows{named} make only {len(together)} units of "
        f"rows that have to stay together (near duplicates, groups), and the largest has {largest} rows",
        "add rows that differ, raise `split.near_duplicate_threshold` (fewer rows count as near duplicates), or "
        "check the sources' `group` column",
    )


def _account(context: StageContext, splits: Mapping[SplitName, Sequence[Example]], assignment: Assignment) -> Account:
    raw = [id_ for id_, _ in _raw_rows(context.inputs["raw_examples"])]
    drops = [*_earlier_drops(context), *assignment.drops]
    return account(raw, {name: [row.id for row in splits[name]] for name in SPLITS}, drops)


def _raw_rows(raw: Artifact) -> Iterator[tuple[str, str]]:
    """Id and origin of every raw row: those that were read, and those that could not be."""
    for name in ("examples.jsonl", "drops.jsonl"):
        yield from ((row["id"], row["origin"]) for row in read_jsonl(raw.path(name)))


def _earlier_drops(context: StageContext) -> Iterator[Drop]:
    """The rows that earlier stages dropped."""
    for asset in ("raw_examples", "clean_examples", "expert_review"):
        yield from (Drop(**row) for row in read_jsonl(context.inputs[asset].path("drops.jsonl")))


def _write(
    context: StageContext, splits: Mapping[SplitName, Sequence[Example]], assignment: Assignment, counts: Account
) -> None:
    for name in SPLITS:
        write_jsonl(context.out / f"{name}.jsonl", splits[name])
    write_jsonl(context.out / "drops.jsonl", assignment.drops)
    write_jsonl(context.out / "outcomes.jsonl", _outcomes(context, assignment))
    (context.out / "accounting.json").write_text(json.dumps(asdict(counts), indent=1), "utf-8")


def _outcomes(context: StageContext, assignment: Assignment) -> Iterator[dict[str, str]]:
    origins = dict(_raw_rows(context.inputs["raw_examples"]))
    for id_, split in assignment.split_of.items():
        yield {"id": id_, "origin": origins[id_], "outcome": split, "stage": STAGE, "reason": ""}
    for drop in (*_earlier_drops(context), *assignment.drops):
        yield {"id": drop.id, "origin": drop.origin, "outcome": "dropped", "stage": drop.stage, "reason": drop.reason}


def _summary(counts: Account) -> dict[str, Json]:
    return {**counts.splits, "raw": counts.raw, "dropped": counts.dropped_rows, "dropped_by_stage": counts.dropped}


def _without_test_rows(all_slices: Sequence[str], test_slices: Sequence[str]) -> list[str]:
    """Slices of two or more rows without a test row, sorted."""
    present = set(test_slices)
    return sorted(name for name, count in Counter(all_slices).items() if count > 1 and name not in present)
