"""Assign each row to train, validation or test. Pure: rows, frozen assignments, shares and seed in; splits, drops out.

    assign(rows, units(rows, near), frozen={}, rules=Split(), slices=[…], similarity=row_similarity(rows, 0.6)).split_of
    # {"9f1c…": "train", …}

What is assigned is not a row but a unit of rows that must stay together: rows of one declared group, near duplicates,
and a conversation with the row of which it is a continuation, transitively (`units`). Three rules, in this order:

1. An earlier assignment stays. A row that was in test is never trained on, and a row that was trained on never becomes
   test (models trained on it exist, and would be evaluated on what they learned). Rows are recognized by id, or by the
   same prompt (frozen_test.py).
2. New rows follow their unit: a unit with test rows (or with rows that resemble a frozen test row that is no longer in
   the data) is test, one with training rows is training. A new row that links test rows with training rows is dropped
   (`overlaps-test`): in either split it would leak. Where such rows overlap directly (a group or threshold that was
   declared later) the training row is dropped: test is frozen.
3. All other units fill the shares of test and validation, slice by slice (quotas.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_pipeline.config import Split
from finetune_pipeline.records import Drop, Example
from finetune_pipeline.split.leakage import Overlap, RowSimilarity, overlaps, shared_turns
from finetune_pipeline.split.quotas import SPLITS, SplitName, Unit, fill_splits, unit_of

STAGE = "split"
ROUNDS = 5  # of assigning again; after the second there is nearly always no overlap left


@dataclass(frozen=True, slots=True)
class Assignment:
    """`split_of`: the split of each row, by id; `drops`: rows that fit into no split. Together these are all rows."""

    split_of: Mapping[str, SplitName]
    drops: tuple[Drop, ...]


def assign_without_overlap(
    rows: Sequence[Example],
    frozen: Mapping[str, SplitName],
    rules: Split,
    slices: Sequence[str],
    similarity: RowSimilarity,
    reworded: Mapping[str, str] | None = None,
) -> tuple[Assignment, list[Overlap]]:
    """An assignment, and the overlaps that it still has: normally none, otherwise the gate fails. For the parameters
    see `assign`.

    Near duplicates are found by hashing, which misses one pair in two hundred at the threshold. The exact check finds
    such pairs between the splits; they are linked, and the rows are assigned again.
    """
    near = similarity.texts.clusters()
    position = {row.id: i for i, row in enumerate(rows)}
    for _ in range(ROUNDS):
        assignment = assign(rows, units(rows, near), frozen, rules, slices, similarity, reworded)
        splits = rows_by_split(rows, assignment)
        found = overlaps(splits["test"], [*splits["train"], *splits["validation"]], similarity)
        if not found:
            break
        near += [[position[overlap.test], position[overlap.other]] for overlap in found]
    return assignment, found


def rows_by_split(rows: Sequence[Example], assignment: Assignment) -> dict[SplitName, list[Example]]:
    """The rows of each split, in their order of input."""
    splits: dict[SplitName, list[Example]] = {name: [] for name in SPLITS}
    for row in rows:
        if row.id in assignment.split_of:
            splits[assignment.split_of[row.id]].append(row)
    return splits


def units(rows: Sequence[Example], near: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the rows that must stay together: connected by a declared group, a cluster of near duplicates, or
    turns that they share."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups: dict[str, int] = {}
    grouped = [
        (i, len(rows) + groups.setdefault(r.group, len(groups))) for i, r in enumerate(rows) if r.group is not None
    ]
    edges = grouped + [(first, other) for first, *rest in (*near, *shared_turns(rows)) for other in rest]
    size = len(rows) + len(groups)
    heads, tails = [a for a, _ in edges], [b for _, b in edges]
    _, labels = connected_components(coo_array(([1] * len(edges), (heads, tails)), shape=(size, size)), directed=False)
    components: dict[int, list[int]] = defaultdict(list)
    for i in range(len(rows)):
        components[int(labels[i])].append(i)
    return list(components.values())


def assign(
    rows: Sequence[Example],
    unit_indices: Sequence[Sequence[int]],
    frozen: Mapping[str, SplitName],
    rules: Split,
    slices: Sequence[str],
    similarity: RowSimilarity,
    reworded: Mapping[str, str] | None = None,
) -> Assignment:
    """The split of every row, or a drop with its reason.

    `unit_indices`: indices of the rows that must stay together (see `units`); `frozen`: splits of earlier runs, by row
    id (see frozen_test.py); `slices`: the slice of each row; `similarity`: of all rows (see leakage.py); `reworded`:
    new rows that resemble a frozen test row, with its id (see frozen_test.py).
    """
    reworded = reworded or {}
    split_of: dict[str, SplitName] = {}
    drops: list[Drop] = []
    free: list[Unit] = []
    slice_of = {row.id: name for row, name in zip(rows, slices, strict=True)}
    for indices in unit_indices:
        members = [rows[i] for i in indices]
        earlier: set[SplitName] = {frozen[row.id] for row in members if row.id in frozen}
        if any(row.id in reworded for row in members):
            earlier.add("test")
        if "test" in earlier and len(earlier) > 1:
            kept, dropped = _divide(members, frozen, similarity, reworded)
            split_of.update(kept)
            drops.extend(dropped)
        elif earlier:
            split: SplitName = "test" if "test" in earlier else "train" if "train" in earlier else "validation"
            split_of.update(dict.fromkeys((row.id for row in members), split))
        else:
            free.append(unit_of(members, slice_of, rules.seed))
    split_of.update(fill_splits(free, Counter((slice_of[id_], s) for id_, s in split_of.items()), rules))
    return Assignment(split_of, tuple(drops))


def _divide(
    unit: Sequence[Example],
    frozen: Mapping[str, SplitName],
    similarity: RowSimilarity,
    reworded: Mapping[str, str],
) -> tuple[dict[str, SplitName], list[Drop]]:
    """Divide a unit that has both test and training rows: rows that overlap with a test row are dropped, the others
    train. The overlap is the one that the gate checks (leakage.py): direct, not through other rows."""
    test = [row for row in unit if frozen.get(row.id) == "test"]
    others = [row for row in unit if frozen.get(row.id) != "test"]
    alike = {row.id: reworded[row.id] for row in others if row.id in reworded}
    why = {id_: f"near duplicate or continuation of test row {tested}" for id_, tested in alike.items()}
    found = reversed(overlaps(test, others, similarity))
    why |= {overlap.other: f"{overlap.kind} of test row {overlap.test}" for overlap in found}
    split_of: dict[str, SplitName] = {row.id: "test" for row in test}
    split_of.update({row.id: frozen.get(row.id, "train") for row in others if row.id not in why})
    drops = [Drop(row.id, row.origin, STAGE, "overlaps-test", why[row.id]) for row in others if row.id in why]
    return split_of, drops
