"""Near duplicates are those that the definition says, neither more nor fewer, whatever the size of the data."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from finetune_pipeline.clean.grams import grams_of
from finetune_pipeline.clean.near import bands_for, clusters, pairs
from finetune_pipeline.clean.normalise import normalise


def gram_set(text: str) -> set[str]:
    plain = normalise(text).ljust(5)
    return {plain[i : i + 5] for i in range(len(plain) - 4)}


def similarity(one: str, other: str) -> float:
    a, b = gram_set(one), gram_set(other)
    return len(a & b) / len(a | b)


def sentences(count: int, words: tuple[int, int], seed: int = 3) -> list[str]:
    """Random sentences, a third of them with one to three words of an earlier one changed or left out."""
    random_ = random.Random(seed)
    vocabulary = ["".join(random_.choices("abcdefghijklmnop", k=random_.randint(2, 9))) for _ in range(400)]
    made: list[list[str]] = []
    for n in range(count):
        if n % 3 == 2:
            copy = list(random_.choice(made))
            for _ in range(random_.randint(0, 3)):
                copy[random_.randrange(len(copy))] = random_.choice(["", random_.choice(vocabulary)])
            made.append(copy)
        else:
            made.append(random_.choices(vocabulary, k=random_.randint(*words)))
    return [" ".join(words_) for words_ in made]


@pytest.mark.parametrize("threshold", [0.4, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("words", [(2, 5), (8, 30)])
def test_pairs_are_those_of_brute_force(threshold: float, words: tuple[int, int]) -> None:
    texts = sentences(150, words)
    sets = [gram_set(text) for text in texts]
    every = combinations(range(len(texts)), 2)
    values = {(i, j): len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in every}
    expected = {pair: value for pair, value in values.items() if value >= threshold}
    found = {(i, j): value for i, j, value in pairs(texts, threshold)}
    assert set(found) <= set(expected)  # exact: nothing below the threshold
    assert all(abs(found[pair] - expected[pair]) < 1e-6 for pair in found)
    assert len(found) >= 0.99 * len(expected)


def test_equal_after_normalising_is_one_and_short_texts_work() -> None:
    assert pairs(["Hi!", "hi", "ho", "", "?"], 0.8) == [(0, 1, 1.0)]
    assert pairs(["", ""], 0.8) == [(0, 1, 1.0)]
    assert pairs([], 0.8) == []
    assert pairs(["a b c", "a b c.", "a b d"], 1.0) == [(0, 1, 1.0)]


def test_every_equal_text_is_paired_with_what_is_near() -> None:
    texts = ["where is my parcel now", "Where is my parcel, now?", "where is my parcel now please"]
    assert [(i, j) for i, j, _ in pairs(texts, 0.7)] == [(0, 1), (0, 2), (1, 2)]
    assert [(i, j) for i, j, _ in pairs(["same"] * 20, 0.7) if i > 0 and j > 8] == []  # linked to the first is enough
    assert [[index for index, _ in cluster] for cluster in clusters(["same"] * 20, 0.7)] == [list(range(20))]


def test_clusters_are_linked_over_several_steps_and_name_the_nearest() -> None:
    start = "where is my parcel number one"
    texts = [start, "other", f"{start} please", f"{start} please, do it"]
    (cluster,) = clusters(texts, 0.75)
    assert [index for index, _ in cluster] == [0, 2, 3]
    assert similarity(texts[0], texts[3]) < 0.75
    assert dict(cluster)[0] == pytest.approx(similarity(texts[0], texts[2]))


def test_a_crowd_from_one_template_is_one_cluster() -> None:
    texts = [f"dear team please cancel order number {n} as soon as you can, thanks a lot" for n in range(1000)]
    found = clusters(texts, 0.8)
    assert [len(cluster) for cluster in found] == [1000]


def test_result_does_not_depend_on_order_or_seed() -> None:
    texts = sentences(200, (8, 20))
    order = np.random.default_rng(0).permutation(len(texts))
    moved = [texts[i] for i in order]
    plain = {frozenset((i, j)) for i, j, _ in pairs(texts, 0.8)}
    assert {frozenset((int(order[i]), int(order[j]))) for i, j, _ in pairs(moved, 0.8, seed=5)} == plain


def test_grams_are_sets_of_each_text_alone() -> None:
    grams = grams_of(["abcdef", "abcdefabcdef", "ab"])
    assert list(grams.sizes) == [2, 6, 1]
    first, second = (set(grams.values[s : s + n]) for s, n in list(zip(grams.starts, grams.sizes, strict=True))[:2])
    assert first < second


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
def test_bands_find_a_pair_at_the_threshold(threshold: float) -> None:
    bands, width = bands_for(threshold)
    assert 1 - (1 - threshold**width) ** bands >= 0.995
