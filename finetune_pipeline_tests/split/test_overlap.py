"""The overlap check finds every pair, against the definition computed the slow way, and names the kind."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from finetune_pipeline.records import Message
from finetune_pipeline.split.overlap import asked, grams, near_pairs, overlaps
from finetune_pipeline_tests.artifacts import example

WORDS = [
    "where",
    "is",
    "my",
    "parcel",
    "order",
    "late",
    "refund",
    "broken",
    "the",
    "please",
    "help",
    "with",
    "delivery",
    "card",
    "account",
    "today",
]


def sentences(count: int, seed: int) -> list[str]:
    """Random sentences, half of them one or two words away from another, some very short, some equal, one empty."""
    rng = random.Random(seed)
    plain = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(count // 2)]
    changed = []
    for text in rng.choices(plain, k=count - len(plain) - 3):
        words = text.split()
        words[rng.randrange(len(words))] = rng.choice(WORDS)
        changed.append(" ".join(words))
    return [*plain, *changed, "", "hi", plain[0]]


def jaccard(a: str, b: str) -> float:
    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.8, 1.0])
def test_every_pair_and_only_those(threshold: float) -> None:
    left, right = sentences(80, 1), sentences(90, 2)
    expected = {(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if jaccard(a, b) >= threshold}
    found = {(i, j): s for i, j, s in near_pairs(left, right, threshold)}
    assert set(found) == expected
    assert expected, "the data must have something to find"
    assert all(s == pytest.approx(jaccard(left[i], right[j])) for (i, j), s in found.items())


def test_a_threshold_of_zero_pairs_everything_that_shares_a_gram() -> None:
    assert len(list(near_pairs(["parcel"], ["parcels", "card"], 0.0))) == 1


def test_nothing_on_one_side_is_no_overlap() -> None:
    assert list(near_pairs([], ["a"], 0.5)) == []
    assert overlaps([], [example("a", "q", "a")], 0.5) == []


def test_each_pair_once_with_its_worst_kind_worst_first() -> None:
    test = [
        example("t1", "Where is my parcel?", "x"),
        example("t2", "the card was declined at the shop", "x", group="customer 7"),
        example("same", "something else entirely", "x"),
    ]
    train = [
        example("a", "where is my PARCEL", "y"),
        example("b", "the card was declined at the shops", "y"),
        example("c", "nobody knows", "y", group="customer 7"),
        example("same", "something else entirely", "x"),
    ]
    found = [(o.kind, o.test, o.other) for o in overlaps(test, train, 0.6)]
    assert found == [
        ("same row", "same", "same"),
        ("same question", "t1", "a"),
        ("same group", "t2", "c"),
        ("near duplicate", "t2", "b"),
    ]


def test_a_conversation_is_all_that_the_user_says() -> None:
    said = (Message("user", "Refund, please!"), Message("assistant", "Sure?"), Message("user", "Yes."))
    row = replace(example("a", "", ""), messages=(*said, Message("assistant", "done")))
    assert asked(row) == "refund please yes"
