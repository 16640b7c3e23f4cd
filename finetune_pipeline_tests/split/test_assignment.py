"""Splits reach their share of every slice, keep units together, and are stable across runs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from finetune_pipeline.config import Split
from finetune_pipeline.records import Example, content_id
from finetune_pipeline.split.assignment import assign, units
from finetune_pipeline.split.leakage import row_similarity
from finetune_pipeline.split.quotas import SplitName, quotas
from finetune_pipeline_tests.artifacts import example

RULES = Split()


def near_units(rows: Sequence[Example]) -> list[list[int]]:
    """Units of declared groups, and of rows whose prompts share half of their 5-grams."""
    return units(rows, row_similarity(rows, 0.5).texts.clusters())


def split(
    rows: Sequence[Example], frozen: dict[str, SplitName] | None = None, rules: Split = RULES
) -> dict[str, SplitName]:
    result = assign(
        rows, units(rows, []), frozen or {}, rules, [row.completion for row in rows], row_similarity(rows, 1.0)
    )
    assert result.split_of.keys() | {drop.id for drop in result.drops} == {row.id for row in rows}
    assert len(result.split_of) + len(result.drops) == len(rows)
    return dict(result.split_of)


def rows_of(slices: dict[str, int], prefix: str = "r", group_size: int = 1) -> list[Example]:
    rng = random.Random(prefix)
    return [
        example(f"{prefix}{rng.getrandbits(64):016x}", "q", name, f"{prefix}{name}{i // group_size}")
        for name, count in slices.items()
        for i in range(count)
    ]


def test_units_are_connected_by_groups_and_near_duplicates() -> None:
    groups = ["a", None, "a", "b", None, None, "b"]
    rows = [example(str(i), "q", "x", group) for i, group in enumerate(groups)]
    assert sorted(units(rows, [[2, 3], [4, 5]])) == [[0, 2, 3, 6], [1], [4, 5]]
    assert units([], []) == []


def test_the_shares_are_reached_overall_and_in_every_slice() -> None:
    rows = rows_of({"big": 700, "middle": 200, "small": 20, "tiny": 3})
    split_of = split(rows)
    assert Counter(split_of.values()) == {"train": 710, "validation": 74, "test": 139}, "15 % are 138, and one for tiny"
    for name, count in Counter(row.completion for row in rows).items():
        found = Counter(split_of[row.id] for row in rows if row.completion == name)
        assert abs(found["test"] - 0.15 * count) <= 1, (name, found)
        assert found["train"] > 0


def test_slices_of_one_row_are_split_like_other_rows() -> None:
    split_of = split(rows_of({f"slice {i}": 1 for i in range(400)}))
    assert Counter(split_of.values()) == {"train": 308, "validation": 32, "test": 60}


def test_groups_are_not_divided_and_the_shares_are_nearly_reached() -> None:
    rows = rows_of({"a": 300, "b": 300}, group_size=7)
    split_of = split(rows)
    splits_of = {row.group: {split_of[r.id] for r in rows if r.group == row.group} for row in rows}
    assert all(len(found) == 1 for found in splits_of.values())
    count = Counter(split_of.values())
    assert abs(count["test"] - 90) <= 4
    assert abs(count["validation"] - 48) <= 4


def test_large_units_are_as_likely_in_test_as_small_ones() -> None:
    small = rows_of({"x": 500}, "s")
    large = rows_of({"x": 500}, "l", group_size=10)
    split_of = split([*small, *large])
    in_test = Counter(row.id[0] for row in (*small, *large) if split_of[row.id] == "test")
    assert 40 <= in_test["l"] <= 110, in_test  # 75 expected: 50 units of 10


def test_the_split_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    rows = rows_of({"a": 100, "b": 50})
    assert split(rows) == split(rows[::-1])
    assert split(rows) != split(rows, rules=Split(seed=12))


def test_the_order_of_the_result_is_the_same_in_every_process() -> None:
    """outcomes.jsonl is written in this order; a set of units would be in another order in each process."""
    rows = rows_of({"a": 300})
    in_test = [id_ for id_, name in split(rows).items() if name == "test"]
    assert in_test == sorted(in_test, key=lambda id_: content_id(str(RULES.seed), id_))


def test_assigned_rows_keep_their_split_when_rows_are_added() -> None:
    """Ten rounds of growth with new slices, new members of old groups and shifting shares."""
    rng = random.Random(3)
    rows: list[Example] = []
    frozen: dict[str, SplitName] = {}
    for step in range(10):
        new = rows_of({"a": rng.randint(1, 40), f"slice {step}": rng.randint(1, 30)}, f"step{step}-", rng.randint(1, 4))
        grouped = [example(f"j{step}-{i}", "q", "a", rng.choice(rows).group) for i in range(5) if rows]
        rows = [*rows, *new, *grouped]
        rng.shuffle(rows)
        split_of = split(rows, frozen)
        assert all(split_of[id_] == before for id_, before in frozen.items())
        frozen = split_of
    share = Counter(frozen.values())["test"] / len(frozen)
    assert 0.1 < share < 0.2


def test_without_frozen_rows_added_rows_move_few_others() -> None:
    rows = rows_of({"a": 500, "b": 300})
    before, after = split(rows), split([*rows, *rows_of({"a": 25, "b": 15}, "n")])
    assert sum(before[row.id] != after[row.id] for row in rows) <= 0.05 * len(rows)


def test_new_rows_follow_their_group() -> None:
    rows = [example("t", "q", "x", "g1"), example("d", "q", "x", "g2"), example("v", "q", "x", "g3")]
    new = [example("n1", "q", "x", "g1"), example("n2", "q", "x", "g2"), example("n3", "q", "x", "g3")]
    split_of = split([*rows, *new], {"t": "test", "d": "train", "v": "validation"})
    assert [split_of[row.id] for row in new] == ["test", "train", "validation"]


BRIDGE = [
    example("t", "alpha bravo charlie delta", "x"),
    example("n", "alpha bravo charlie delta echo foxtrot golf", "x"),
    example("d", "charlie delta echo foxtrot golf", "x"),
]


def test_a_new_row_that_links_test_with_training_rows_is_dropped() -> None:
    rows = [*BRIDGE, example("m", "charlie delta echo foxtrot golf!", "x")]
    result = assign(
        rows,
        near_units(rows),
        {"t": "test", "d": "train"},
        Split(near_duplicate_threshold=0.5),
        ["x"] * 4,
        row_similarity(rows, 0.5),
    )
    assert len(near_units(rows)) == 1, "all four are one unit"
    assert result.split_of == {"t": "test", "d": "train", "m": "train"}
    assert [(drop.id, drop.reason, drop.detail) for drop in result.drops] == [
        ("n", "overlaps-test", "near duplicate of test row t")
    ]


def test_a_training_row_that_overlaps_with_a_test_row_is_dropped() -> None:
    rows = [example("t", "q", "x", "g"), example("d", "q", "x", "g"), example("n", "q", "x", "g")]
    result = assign(rows, units(rows, []), {"t": "test", "d": "train"}, RULES, ["x"] * 3, row_similarity(rows, 1.0))
    assert result.split_of == {"t": "test"}
    assert sorted(drop.id for drop in result.drops) == ["d", "n"]


@pytest.mark.parametrize("share", [0.01, 0.08, 0.15, 0.49])
def test_quotas_add_up_to_the_share(share: float) -> None:
    rng = random.Random(5)
    sizes = {f"s{i}": rng.randint(1, 60) for i in range(50)}
    quota = quotas(sizes, share, 1, {})
    assert sum(quota.values()) == round(share * sum(sizes.values()))
    assert all(abs(quota[name] - share * size) < 1 for name, size in sizes.items())
