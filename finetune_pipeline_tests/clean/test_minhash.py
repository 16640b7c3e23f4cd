"""Near duplicates are exactly the pairs of the definition, for data of any size."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest

from finetune_pipeline.clean import minhash
from finetune_pipeline.clean.minhash import bands_for
from finetune_pipeline.clean.normalize import normalize
from finetune_pipeline.clean.shingles import I64, distinct_sets, grams_of, remove_grams
from finetune_pipeline.clean.similarity import measure


def gram_set(text: str) -> set[str]:
    plain = normalize(text).ljust(5)
    return {plain[i : i + 5] for i in range(len(plain) - 4)}


def similarity(left: str, right: str) -> float:
    a, b = gram_set(left), gram_set(right)
    return len(a & b) / len(a | b)


def pairs(texts: list[str], threshold: float) -> list[tuple[int, int, float]]:
    return sorted(measure(texts, threshold).pairs())


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


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("words", [(1, 4), (8, 30)])
def test_between_finds_every_pair_exactly(threshold: float, words: tuple[int, int]) -> None:
    texts = sentences(240, words, seed=int(threshold * 100))
    alike = measure(texts, threshold)
    left, right = range(90), range(90, 240)
    expected = {(i, j) for i in left for j in right if similarity(texts[i], texts[j]) >= threshold}
    found = {(i, j): value for i, j, value in alike.between(left, right)}
    sets = [{alike.at[i] for i, _ in pairs} | {alike.at[j] for _, j in pairs} for pairs in (found, expected)]
    assert sets[0] == sets[1], "every text that has a near duplicate in the other list is in a pair"
    assert {(alike.at[i], alike.at[j]) for i, j in found} == {(alike.at[i], alike.at[j]) for i, j in expected}
    assert expected, "the data have near duplicates"
    assert all(value == pytest.approx(similarity(texts[i], texts[j])) for (i, j), value in found.items())


def test_between_is_exact_however_many_grams_are_common(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = sentences(300, (3, 12))
    found = []
    for common in (1, 64, 500, 10**5):
        monkeypatch.setattr("finetune_pipeline.clean.exact._COMMON", common)
        monkeypatch.setattr("finetune_pipeline.clean.exact._BLOCK", 200)
        found.append(sorted(measure(texts, 0.6).between(range(100), range(100, 300))))
    assert found[0]
    assert all(pairs_ == found[0] for pairs_ in found)


def test_texts_equal_after_normalizing_are_near_duplicates_also_short_ones() -> None:
    assert pairs(["Hi!", "hi", "ho", "", "?"], 0.8) == [(0, 1, 1.0)]
    assert pairs(["", ""], 0.8) == [(0, 1, 1.0)]
    assert pairs([], 0.8) == []
    assert measure([], 0.8).clusters() == []
    assert pairs(["a b c", "a b c.", "a b d"], 1.0) == [(0, 1, 1.0)]


def test_every_equal_text_is_paired_with_its_near_duplicates() -> None:
    texts = ["where is my parcel now", "Where is my parcel, now?", "where is my parcel now please"]
    assert [(i, j) for i, j, _ in pairs(texts, 0.7)] == [(0, 1), (0, 2), (1, 2)]
    assert [(i, j) for i, j, _ in pairs(["same"] * 20, 0.7) if i > 0 and j > 8] == []  # a link to the first is enough
    assert measure(["same"] * 20, 0.7).clusters() == [list(range(20))]


def test_clusters_are_linked_over_several_steps() -> None:
    start = "where is my parcel number one"
    texts = [start, "other", f"{start} please", f"{start} please, do it"]
    assert measure(texts, 0.75).clusters() == [[0, 2, 3]]
    assert similarity(texts[0], texts[3]) < 0.75


def test_the_result_does_not_depend_on_the_order() -> None:
    texts = sentences(200, (8, 20))
    order = np.random.default_rng(0).permutation(len(texts))
    moved = [texts[i] for i in order]
    plain = {frozenset((i, j)) for i, j, _ in pairs(texts, 0.8)}
    assert {frozenset((int(order[i]), int(order[j]))) for i, j, _ in pairs(moved, 0.8)} == plain


def test_a_crowd_is_not_compared_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are counted: of four million pairs that are all near, a few for each row are verified."""
    counted: list[int] = []
    verified = minhash._verified

    def counting(codes: I64, index: minhash._Index) -> Iterator[minhash.Pairs]:
        counted.append(len(codes))
        return verified(codes, index)

    monkeypatch.setattr(minhash, "_verified", counting)
    common = "of the long text that they all have in common and that fills the row nearly to its very end"
    grams = grams_of([f"number {n} {common}" for n in range(2800)])
    minhash.linked(grams, np.full(2800, 0.6), crowd=50)
    assert sum(counted) < 10 * 2800


def test_grams_are_one_set_for_each_text() -> None:
    grams = grams_of(["abcdef", "abcdefabcdef", "ab"])
    assert list(grams.sizes) == [2, 6, 1]
    first, second = (set(grams.values[s : s + n]) for s, n in list(zip(grams.starts, grams.sizes, strict=True))[:2])
    assert first < second


def test_grams_are_removed_and_equal_sets_are_found() -> None:
    grams = grams_of(["abcdef", "abcdefg", "abcdef", "zzzzz"])
    removed = np.sort(grams.values[:2])
    reduced = remove_grams(grams, removed, np.array([True, True, False, True]))
    assert list(reduced.sizes) == [2, 1, 2, 1], "a set without other grams is unchanged"
    first, at = distinct_sets(grams)
    assert len(first) == 3
    assert at[0] == at[2] != at[1]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99])
def test_bands_find_a_pair_at_the_threshold(threshold: float) -> None:
    bands, width = bands_for(threshold)
    assert 1 - (1 - threshold**width) ** bands >= 0.995
