"""Which side each row falls on: train, validation or test. Pure: rows, what was decided before, shares and seed in;
sides and drops out.

The unit that is assigned is not the row but everything that must stay together: rows of one declared group, and near
duplicates, transitively (`units`). Three rules, in this order:

1. What was decided before stays. A row that was in test never trains, a row that trained never becomes test (models
   made from it exist, and would be judged on what they learned). Rows are known by id, or by the same question.
2. New rows follow what they belong to: a unit with test rows (or with rows that resemble a frozen test row which is
   gone) is test, one with training rows is training. Where a new row links test rows with training rows it is dropped
   (`overlaps-test`): on either side it would leak. Where such rows overlap directly (a group or threshold declared
   later) the training row is dropped: test is frozen.
3. Free units are ordered, within each slice, by a hash of seed and lowest row id, and fill first the test's share of
   the slice, then the validation's, so that small slices are present in test. What large groups make impossible in
   one slice is made up for in the next.

    assign(rows, units(rows, near), known={}, rules=Split(), slices=[...], alike=alike_of(rows, 0.6)).side
    # {"9f1c…": "train", ...}
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from finetune_pipeline.config import Split
from finetune_pipeline.records import Drop, Example, content_id
from finetune_pipeline.split.leakage import Alike, overlaps

STAGE = "split"
SMALL_SLICE = 3  # a slice with this many units has at least one test row, and still two to learn from

SplitName: TypeAlias = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """`split_of` of every row by its id; `drops` are the rows that no side can take. Together they are all rows."""

    split_of: Mapping[str, SplitName]
    drops: tuple[Drop, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    ids: tuple[str, ...]
    stratum: str
    place: str


def units(rows: Sequence[Example], near: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of the rows that must stay together: connected through a declared group or a near-duplicate cluster."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups: dict[str, int] = {}
    named = [
        (i, len(rows) + groups.setdefault(r.group, len(groups))) for i, r in enumerate(rows) if r.group is not None
    ]
    links = named + [(cluster[0], other) for cluster in near for other in cluster[1:]]
    size = len(rows) + len(groups)
    heads, tails = [a for a, _ in links], [b for _, b in links]
    _, labels = connected_components(coo_array(([1] * len(links), (heads, tails)), shape=(size, size)), directed=False)
    found: dict[int, list[int]] = defaultdict(list)
    for i in range(len(rows)):
        found[int(labels[i])].append(i)
    return list(found.values())


def assign(
    rows: Sequence[Example],
    together: Sequence[Sequence[int]],
    known: Mapping[str, SplitName],
    rules: Split,
    slices: Sequence[str],
    alike: Alike,
    resembling: Mapping[str, str] | None = None,
) -> Assignment:
    """Give every row a side, or a drop with its reason.

    `together`: indices of the rows that must stay together (see `units`); `known`: sides decided before, by row id
    (see frozen_test.py); `slices`: the slice of each row; `alike`: how alike the rows are (see leakage.py);
    `resembling`: new rows that are near a frozen test row, and its id (see frozen_test.py).
    """
    resembling = resembling or {}
    split_of: dict[str, SplitName] = {}
    drops: list[Drop] = []
    free: list[_Unit] = []
    sliced = {row.id: name for row, name in zip(rows, slices, strict=True)}
    for indices in together:
        unit = [rows[i] for i in indices]
        decided: set[SplitName] = {known[row.id] for row in unit if row.id in known}
        if any(row.id in resembling for row in unit):
            decided.add("test")
        if "test" in decided and len(decided) > 1:
            kept, cut = _cut(unit, known, alike, resembling)
            split_of.update(kept)
            drops.extend(cut)
        elif decided:
            one: SplitName = "test" if "test" in decided else "train" if "train" in decided else "validation"
            split_of.update(dict.fromkeys((row.id for row in unit), one))
        else:
            free.append(_unit(unit, sliced, rules.seed))
    split_of.update(_fill(free, Counter((sliced[id_], s) for id_, s in split_of.items()), rules))
    return Assignment(split_of, tuple(drops))


def _cut(
    unit: Sequence[Example], known: Mapping[str, SplitName], alike: Alike, resembling: Mapping[str, str]
) -> tuple[dict[str, SplitName], list[Drop]]:
    """Part a unit that holds rows of both test and training: what itself overlaps with a test row goes, the rest
    trains. What overlaps is what the gate will look for (leakage.py): directly, no longer through others."""
    test = [row for row in unit if known.get(row.id) == "test"]
    others = [row for row in unit if known.get(row.id) != "test"]
    near = {row.id: f"near duplicate of test row {resembling[row.id]}" for row in others if row.id in resembling}
    near |= {found.other: f"{found.kind} of test row {found.test}" for found in reversed(overlaps(test, others, alike))}
    split_of: dict[str, SplitName] = {row.id: "test" for row in test}
    split_of.update({row.id: known.get(row.id, "train") for row in others if row.id not in near})
    drops = [Drop(row.id, row.origin, STAGE, "overlaps-test", near[row.id]) for row in others if row.id in near]
    return split_of, drops


def _unit(unit: Sequence[Example], sliced: Mapping[str, str], seed: int) -> _Unit:
    """The lowest id, not the lowest hash, stands for a unit: the least of many hashes would favor large units."""
    ids = tuple(row.id for row in unit)
    counts = Counter(sliced[id_] for id_ in ids)
    stratum = min(counts, key=lambda name: (-counts[name], name))
    return _Unit(ids, stratum, content_id(str(seed), min(ids)))


def _fill(free: Sequence[_Unit], taken: Counter[tuple[str, SplitName]], rules: Split) -> dict[str, SplitName]:
    """Assignment of the free units, such that with the rows already `taken` each slice reaches its shares."""
    strata: dict[str, list[_Unit]] = defaultdict(list)
    for unit in sorted(free, key=lambda unit: unit.place):
        strata[unit.stratum].append(unit)
    sizes = Counter({name: sum(len(unit.ids) for unit in found) for name, found in strata.items()})
    for (name, _), count in taken.items():
        sizes[name] += count
    least = {name: 1 for name, found in strata.items() if len(found) >= SMALL_SLICE}
    shares: tuple[tuple[SplitName, float, Mapping[str, int]], ...] = (
        ("test", rules.test, least),
        ("validation", rules.validation, {}),
    )
    split_of: dict[str, SplitName] = {}
    for name, share, floor in shares:
        quota = quotas(sizes, share, rules.seed, floor)
        owed = 0
        for stratum in sorted(strata, key=lambda s: content_id(str(rules.seed), s)):
            have = taken[stratum, name]
            target = quota[stratum] + owed
            picked = _pick(strata[stratum], have, target)
            strata[stratum] = [unit for unit in strata[stratum] if unit not in picked]
            split_of.update(dict.fromkeys(chain.from_iterable(unit.ids for unit in picked), name))
            have += sum(len(unit.ids) for unit in picked)
            owed = target - have if picked or have < target else 0
    rest: dict[str, SplitName] = dict.fromkeys(
        chain.from_iterable(u.ids for found in strata.values() for u in found), "train"
    )
    return {**rest, **split_of}


def _pick(ordered: Sequence[_Unit], have: int, target: int) -> set[_Unit]:
    """Take units in their order as long as each brings the count nearer to the target."""
    picked: set[_Unit] = set()
    for unit in ordered:
        size = len(unit.ids)
        if have < target and abs(have + size - target) <= target - have:
            picked.add(unit)
            have += size
    return picked


def quotas(sizes: Mapping[str, int], share: float, seed: int, floor: Mapping[str, int]) -> dict[str, int]:
    """How many rows of each stratum a share is: largest remainders (Hamilton's method), ties by a hash, and at least
    `floor`. The sum is the share of all rows, rounded, where no floor raises it."""
    exact = {name: share * size for name, size in sizes.items()}
    whole = {name: math.floor(value) for name, value in exact.items()}
    left = round(share * sum(sizes.values())) - sum(whole.values())
    by_rest = sorted(exact, key=lambda name: (whole[name] - exact[name], content_id(str(seed), name)))
    for name in by_rest[:left]:
        whole[name] += 1
    return {name: max(count, floor.get(name, 0)) for name, count in whole.items()}
