"""Fill the test and validation splits from units of rows, so that every slice reaches its share. Pure.

    quotas({"refund": 100, "delivery": 60}, 0.15, seed=11, at_least={})      # {"refund": 15, "delivery": 9}

Units (rows that must stay together) are ordered within each slice by a hash of the seed and their lowest row id. They
fill first the test's share of the slice, then the validation's; the rest is training. What large units make impossible
in one slice is carried over to the next.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

from finetune_pipeline.config import Split
from finetune_pipeline.records import Example, content_id

SMALL_SLICE = 3  # a slice with at least this many units has a test row, and two units left to train on

SplitName: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that must stay together: their ids, the slice most of them belong to, and their place in the random order
    (a hash)."""

    ids: tuple[str, ...]
    slice: str
    order: str


def unit_of(rows: Sequence[Example], slice_of: Mapping[str, str], seed: int) -> Unit:
    """The unit of these rows. Its order is the hash of the lowest id, not the lowest hash: the lowest of many hashes
    would favor large units."""
    ids = tuple(row.id for row in rows)
    counts = Counter(slice_of[id_] for id_ in ids)
    most = min(counts, key=lambda name: (-counts[name], name))
    return Unit(ids, most, content_id(str(seed), min(ids)))


def fill_splits(units: Sequence[Unit], assigned: Counter[tuple[str, SplitName]], rules: Split) -> dict[str, SplitName]:
    """The split of each row of the `units`. `assigned` counts the rows that have a split already, by slice and split:
    together each slice reaches its shares."""
    by_slice: dict[str, list[Unit]] = defaultdict(list)
    for unit in sorted(units, key=lambda unit: unit.order):
        by_slice[unit.slice].append(unit)
    sizes = Counter({name: sum(len(unit.ids) for unit in members) for name, members in by_slice.items()})
    for (name, _), count in assigned.items():
        sizes[name] += count
    at_least = {name: 1 for name, members in by_slice.items() if len(members) >= SMALL_SLICE}
    split_of: dict[str, SplitName] = {}
    for unit in _taken(by_slice, assigned, "test", quotas(sizes, rules.test, rules.seed, at_least), rules.seed):
        split_of.update(dict.fromkeys(unit.ids, "test"))
    for unit in _taken(by_slice, assigned, "validation", quotas(sizes, rules.validation, rules.seed, {}), rules.seed):
        split_of.update(dict.fromkeys(unit.ids, "validation"))
    left = chain.from_iterable(by_slice.values())
    return {**dict.fromkeys(chain.from_iterable(unit.ids for unit in left), "train"), **split_of}


def _taken(
    by_slice: dict[str, list[Unit]],
    assigned: Counter[tuple[str, SplitName]],
    split: SplitName,
    quota: Mapping[str, int],
    seed: int,
) -> list[Unit]:
    """Take the units of one split out of `by_slice`; what a slice cannot fill is carried over to the next slice."""
    taken: list[Unit] = []
    carried = 0
    for name in sorted(by_slice, key=lambda name: content_id(str(seed), name)):
        count, target = assigned[name, split], quota[name] + carried
        picked = _pick(by_slice[name], count, target)
        chosen = set(picked)
        by_slice[name] = [unit for unit in by_slice[name] if unit not in chosen]
        taken += picked
        count += sum(len(unit.ids) for unit in picked)
        carried = target - count if picked or count < target else 0
    return taken


def _pick(ordered: Sequence[Unit], count: int, target: int) -> list[Unit]:
    """Units in their order, as long as each brings the `count` of rows closer to the target."""
    picked: list[Unit] = []
    for unit in ordered:
        size = len(unit.ids)
        if count < target and abs(count + size - target) <= target - count:
            picked.append(unit)
            count += size
    return picked


def quotas(sizes: Mapping[str, int], share: float, seed: int, at_least: Mapping[str, int]) -> dict[str, int]:
    """The rows of each slice that make up `share` (0 to 1): largest remainders (Hamilton's method), ties by a hash, and
    no fewer than `at_least`. The sum is the share of all rows, rounded, unless `at_least` raises it."""
    exact = {name: share * size for name, size in sizes.items()}
    whole = {name: math.floor(value) for name, value in exact.items()}
    left = round(share * sum(sizes.values())) - sum(whole.values())
    by_remainder = sorted(exact, key=lambda name: (whole[name] - exact[name], content_id(str(seed), name)))
    for name in by_remainder[:left]:
        whole[name] += 1
    return {name: max(count, at_least.get(name, 0)) for name, count in whole.items()}
