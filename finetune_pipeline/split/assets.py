"""The split as an asset: train.jsonl, validation.jsonl, test.jsonl, the rows no side could take, and the account of
every raw row (accounting.json the counts, outcomes.jsonl a line for each raw row).

    {"id": "9f1c20e4a7b35d68", "origin": "tickets.csv:12", "outcome": "dropped", "stage": "clean", "reason": "html"}

The verdict is the hard check for overlap (leakage.py); only a split that passes it is remembered (frozen_test.py).
What it is not: the rules (assignment.py), or the arithmetic of the account (accounting.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from finetune_pipeline.config import Split
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Artifact, Check, Drop, Example, Json, Verdict, read_jsonl, write_jsonl
from finetune_pipeline.split.accounting import Account, account
from finetune_pipeline.split.assignment import STAGE, Assignment, SplitName, assign, units
from finetune_pipeline.split.frozen_test import extended, frozen_file, known_splits, recall, remember, resembling
from finetune_pipeline.split.leakage import Alike, Overlap, alike_of, overlaps
from finetune_pipeline.split.slices import slice_of
from finetune_pipeline.store import StageContext, StageResult

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
FEW_TEST_ROWS = 30  # with these, a rise from 70 % to 90 % is missed two times in three (exact McNemar, two-sided 5 %)
NAMED = 5
ROUNDS = 5  # of assigning anew; the second nearly always finds nothing left


def data_split(work: StageContext) -> StageResult:
    """Split the reviewed rows. DataError when a side stays empty or the rows do not reconcile."""
    rules, rows = work.task.split, list(work.inputs["expert_review"].examples())
    memory = recall(work.store, rules.seed)
    alike = alike_of(rows, rules.near_duplicate_threshold)
    known = known_splits(rows, memory)
    returned = resembling(rows, known, memory, alike)
    slices = [slice_of(row.completion, work.task.answer) for row in rows]
    assignment, found = separate(rows, known, rules, slices, alike, returned)
    parts = parted(rows, assignment)
    _refuse_empty(parts, rows, alike)
    counts = _account(work, parts, assignment)
    _write(work, parts, assignment, counts)
    missing = _without_test_rows(slices, [slice_of(row.completion, work.task.answer) for row in parts["test"]])
    verdict = evaluate_split(found, parts, rules, missing, work.inputs["expert_review"].content_hash, alike)
    if verdict.passed and remember(work.store, rules.seed, extended(memory, rows, assignment.split_of, alike)):
        work.report.log(f"{frozen_file(work.store)} says which rows are test rows for good: commit it with the task")
    work.report.log(verdict.summary)
    figures: dict[str, Json] = {
        "frozen_test_rows": sum(split_name == "test" for split_name in known.values()),
        "reworded_test_rows": len(returned),
        "slices_without_test_rows": missing,
    }
    return StageResult({**_counted(counts), **figures}, verdict)


def separate(
    rows: Sequence[Example],
    known: Mapping[str, SplitName],
    rules: Split,
    slices: Sequence[str],
    alike: Alike,
    returned: Mapping[str, str] | None = None,
) -> tuple[Assignment, list[Overlap]]:
    """Assign sides such that nothing overlaps, and what still does (nothing, or the gate refuses). `returned`: rows
    that resemble a frozen test row, and its id.

    The finder of near duplicates is hashing: one pair in two hundred at the threshold escapes it. The exact check finds
    those between the sides; they are linked, and sides are assigned again.
    """
    near = alike.similarity.clusters()
    at = {row.id: i for i, row in enumerate(rows)}
    for _ in range(ROUNDS):
        assignment = assign(rows, units(rows, near), known, rules, slices, alike, returned)
        parts = parted(rows, assignment)
        found = overlaps(parts["test"], [*parts["train"], *parts["validation"]], alike)
        if not found:
            break
        near += [[at[overlap.test], at[overlap.other]] for overlap in found]
    return assignment, found


def parted(rows: Sequence[Example], assignment: Assignment) -> dict[SplitName, list[Example]]:
    """The rows of each side, in the order they came."""
    parts: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    for row in rows:
        if row.id in assignment.split_of:
            parts[assignment.split_of[row.id]].append(row)
    return parts


def evaluate_split(
    found: Sequence[Overlap],
    parts: Mapping[SplitName, Sequence[Example]],
    rules: Split,
    missing: Sequence[str],
    about: str,
    alike: Alike,
) -> Verdict:
    """The gate: no overlap between test and the rows that train; and warnings about what the test cannot show."""
    total = sum(len(rows) for rows in parts.values())
    test = len(parts["test"])
    share = test / total if total else 0.0
    checks = (
        Check("no overlap between test and training", not found, "no pair", _pairs(found), value=len(found)),
        Check("test rows", test >= FEW_TEST_ROWS, f"at least {FEW_TEST_ROWS}", str(test), "warning", test),
        Check(
            "share of test rows",
            abs(share - rules.test) <= max(0.02, 0.25 * rules.test),
            f"about {rules.test:.0%}; what was decided before stays: another split.seed draws anew",
            f"{share:.1%}",
            "warning",
            share,
        ),
        Check("slices present in test", not missing, "all", _names(missing) or "all", "warning", len(missing)),
        _templates(alike, rules),
    )
    said = ", ".join(f"{len(parts[name])} {name}" for name in SPLITS)
    summary = f"{said}; no overlap" if not found else f"{said}; {len(found)} pairs overlap: {_pairs(found)}"
    figures: dict[str, Json] = {
        **{name: len(parts[name]) for name in SPLITS},
        "overlaps": [asdict(overlap) for overlap in found[:100]],
        "overlap_pairs": len(found),
        "ignored_grams": alike.similarity.ignored,
        "rows_of_templates": alike.similarity.raised(),
    }
    return Verdict("data_split", not found, about, summary, checks, figures)


def _templates(alike: Alike, rules: Split) -> Check:
    """Rows of one template are alike by nature and count as near duplicates only from a higher similarity: say so."""
    raised = alike.similarity.raised()
    told = "; ".join(f"{count} rows only from {least}" for least, count in raised.items()) or "all rows"
    return Check(
        "rows kept apart as declared",
        not raised,
        f"from similarity {rules.near_duplicate_threshold:g}",
        told,
        "warning",
    )


def _refuse_empty(parts: Mapping[SplitName, Sequence[Example]], rows: Sequence[Example], alike: Alike) -> None:
    empty = [name for name in SPLITS if not parts[name]]
    if not empty:
        return
    together = units(rows, alike.similarity.clusters())
    largest = max(map(len, together), default=0)
    groups = len({row.group for row in rows if row.group is not None})
    named = f" and {groups} declared groups" if groups else ""
    raise DataError(
        f"the split leaves {' and '.join(empty)} empty: {len(rows)} rows{named} make only {len(together)} units of "
        f"rows that have to stay together (near duplicates, groups), and the largest holds {largest} rows",
        "add rows that differ, raise `split.near_duplicate_threshold` (fewer rows count as alike), or "
        "check the sources' `group` column",
    )


def _account(work: StageContext, parts: Mapping[SplitName, Sequence[Example]], assignment: Assignment) -> Account:
    raw = [id_ for id_, _ in _raw_rows(work.inputs["raw_examples"])]
    drops = [*_earlier_drops(work), *assignment.drops]
    return account(raw, {name: [row.id for row in parts[name]] for name in SPLITS}, drops)


def _raw_rows(raw: Artifact) -> Iterator[tuple[str, str]]:
    """Id and origin of every raw row: those that were read, and those that could not be."""
    for name in ("examples.jsonl", "drops.jsonl"):
        yield from ((row["id"], row["origin"]) for row in read_jsonl(raw.path(name)))


def _earlier_drops(work: StageContext) -> Iterator[Drop]:
    for asset in ("raw_examples", "clean_examples", "expert_review"):
        yield from (Drop(**row) for row in read_jsonl(work.inputs[asset].path("drops.jsonl")))


def _write(
    work: StageContext, parts: Mapping[SplitName, Sequence[Example]], assignment: Assignment, counts: Account
) -> None:
    for name in SPLITS:
        write_jsonl(work.out / f"{name}.jsonl", parts[name])
    write_jsonl(work.out / "drops.jsonl", assignment.drops)
    write_jsonl(work.out / "outcomes.jsonl", _outcomes(work, assignment))
    (work.out / "accounting.json").write_text(json.dumps(asdict(counts), indent=1), "utf-8")


def _outcomes(work: StageContext, assignment: Assignment) -> Iterator[dict[str, str]]:
    origins = dict(_raw_rows(work.inputs["raw_examples"]))
    for id_, split_name in assignment.split_of.items():
        yield {"id": id_, "origin": origins[id_], "outcome": split_name, "stage": STAGE, "reason": ""}
    for drop in (*_earlier_drops(work), *assignment.drops):
        yield {"id": drop.id, "origin": drop.origin, "outcome": "dropped", "stage": drop.stage, "reason": drop.reason}


def _counted(counts: Account) -> dict[str, Json]:
    return {**counts.splits, "raw": counts.raw, "dropped": counts.dropped_rows, "dropped_by_stage": counts.dropped}


def _without_test_rows(all_slices: Sequence[str], test_slices: Sequence[str]) -> list[str]:
    """Slices of two or more rows that no test row belongs to, sorted."""
    present = set(test_slices)
    return sorted(name for name, count in Counter(all_slices).items() if count > 1 and name not in present)


def _pairs(found: Sequence[Overlap]) -> str:
    named = [f"{o.test} (test) and {o.other}: {o.kind}, {o.similarity:.2f}" for o in found[:NAMED]]
    return "; ".join(named) + (f"; and {len(found) - NAMED} more" if len(found) > NAMED else "") or "none"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
