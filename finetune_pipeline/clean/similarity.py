"""Similarity of two texts of a collection: the definition used by cleaning, by the split and by its leakage check.

Two texts are near duplicates when the Jaccard similarity of their sets of character 5-grams (after normalize.py)
reaches a threshold: |A ∩ B| / |A ∪ B|. Characters are used since one changed word of a short prompt is one fifth of
its words but a tenth of its 5-grams, and since they need no word boundaries.

Text that many rows share is left out. An instruction of 500 characters before each prompt, or one template with other
names in it, would make every two rows near duplicates. Therefore:

1. Passages of 64 characters and more that many texts have are cut out of them (passages.py, from 20 texts on). Shorter
   ones, such as common phrases, count like any other text.
2. Texts that are then still linked in a crowd (more than 5 % of the texts, 50 at least) come from one template: grams
   that more than half of the crowd has are left out of its texts. Where that does not separate them, they are near
   duplicates of each other only from a higher similarity, 0.1 more in each round.

Leaving out text makes some rows similar that are not (one message under two instructions), and separates some rows that
are (fifty copies of one complaint that differ in its number). So a row is dropped as a duplicate only where the whole
texts are similar as well (`resemblance`), and the split requires that enough is left to distinguish rows
(`least_left`).

    alike = measure(["where is my order?", "Where is my orders", "refund!"], 0.6)
    list(alike.pairs())          # [(0, 1, 0.93)]        alike.clusters()      # [[0, 1]]
    list(alike.between([0], [1, 2]))                     # [(0, 1, 0.93)], every pair, found exactly
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_pipeline.clean.exact import near_between
from finetune_pipeline.clean.minhash import F64, Pairs, component_sizes, components, linked
from finetune_pipeline.clean.normalize import normalize
from finetune_pipeline.clean.passages import without_passages
from finetune_pipeline.clean.shingles import (
    I64,
    U32,
    Grams,
    count_members,
    distinct_sets,
    gather,
    grams_of,
    remove_grams,
    take_rows,
)

CROWD, CROWD_SHARE = 50, 0.05  # a component of more distinct texts than both is a crowd
TEMPLATE_SHARE = 0.8  # of a template's grams: a text that has more of them comes from the template
MIN_TEMPLATE_GRAMS = 8  # fewer do not show that a text comes from a template
STEP = 0.1  # added to the similarity that a crowd needs
ROUNDS = 12  # of separating crowds; the texts of a crowd that is left then need equal sets
_ALL_PAIRS = 8  # equal texts of which all pairs are formed


@dataclass(frozen=True, slots=True)
class Similarity:
    """The texts as they are compared: the distinct sets of `grams`, the `least` similarity that each needs, for each
    set the texts that have it (`groups`, by position), for each text its set (`at`), the near pairs of sets
    (`links`), and the share of the grams that is `ignored` since many texts have them (0 to 1)."""

    threshold: float
    grams: Grams
    least: F64
    groups: tuple[tuple[int, ...], ...]
    at: I64
    links: tuple[tuple[int, int, float], ...]
    ignored: float

    def raised(self) -> dict[str, int]:
        """How many texts need a higher similarity than the threshold since they come from a template: {"0.7": 310}."""
        needs = np.round(self.least[self.at], 2) if len(self.at) else np.zeros(0)
        values, counts = np.unique(needs[needs > self.threshold + STEP / 2], return_counts=True)
        return {f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)}

    def pairs(self) -> Iterator[tuple[int, int, float]]:
        """(i, j, similarity), i < j, each once: the near duplicates (within the recall of minhash.py). Of texts with
        equal sets, the first 8 are paired with each other, every later one with the first only; pairs with other sets
        are formed for the first 8. That is enough to link clusters, but does not list every pair."""
        for group in self.groups:
            for n, j in enumerate(group[1:], 1):
                yield from ((i, j, 1.0) for i in (group[:n] if n < _ALL_PAIRS else group[:1]))
        for a, b, similarity in self.links:
            for i in self.groups[a][:_ALL_PAIRS]:
                yield from ((min(i, j), max(i, j), similarity) for j in self.groups[b][:_ALL_PAIRS])

    def clusters(self) -> list[list[int]]:
        """The connected components of near duplicates: positions of two or more texts each, sorted."""
        left, right = (np.array([link[i] for link in self.links], np.int64) for i in (0, 1))
        labels = components(left, right, len(self.groups))
        clusters: dict[int, list[int]] = {}
        for label, group in zip(labels.tolist(), self.groups, strict=True):
            clusters.setdefault(label, []).extend(group)
        return sorted(sorted(members) for members in clusters.values() if len(members) > 1)

    def between(self, left: Sequence[int], right: Sequence[int]) -> Iterator[tuple[int, int, float]]:
        """Near duplicates between `left` and `right` (positions of texts), found exactly. Every text that has a near
        duplicate in the other list is in a pair; of texts with equal sets not every pair is formed."""
        left_by_set, right_by_set = self._by_set(left), self._by_set(right)
        if self.threshold >= 1:  # equal texts, not equal sets
            for shared in sorted(left_by_set.keys() & right_by_set.keys()):
                yield from star(left_by_set[shared], right_by_set[shared], 1.0)
            return
        left_sets, right_sets = (np.array(sorted(by_set), np.int64) for by_set in (left_by_set, right_by_set))
        for a, b, similarity in near_between(self.grams, self.least, left_sets, right_sets):
            yield from star(left_by_set[a], right_by_set[b], similarity)

    def _by_set(self, texts: Sequence[int]) -> dict[int, list[int]]:
        by_set: dict[int, list[int]] = {}
        for text in texts:
            by_set.setdefault(int(self.at[text]), []).append(text)
        return by_set


def star(left: Sequence[int], right: Sequence[int], similarity: float) -> Iterator[tuple[int, int, float]]:
    """Each of `left` with the first of `right`, and each other of `right` with the first of `left`: all are linked,
    while the number of pairs does not grow with the square."""
    yield from ((i, right[0], similarity) for i in left)
    yield from ((left[0], j, similarity) for j in right[1:])


def resemblance(left: str, right: str) -> float:
    """The Jaccard similarity of two whole texts, with no text left out (0 to 1)."""
    a, b = (set(grams_of([normalize(text)]).values.tolist()) for text in (left, right))
    return len(a & b) / len(a | b)


def measure(texts: Sequence[str], threshold: float, least_left: int = 1) -> Similarity:
    """Compare texts: which of their grams count, and how similar two have to be. With a threshold of 1 only equal texts
    (after normalize.py) are near duplicates. `least_left`: characters that have to be left besides a passage that few
    texts have (passages.py). ValueError for a threshold outside (0, 1]."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is not in (0, 1]")
    plain: dict[str, int] = {}
    of_text = np.array([plain.setdefault(normalize(text), len(plain)) for text in texts], np.int64)
    least = np.full(len(plain), threshold)
    if threshold >= 1 or not texts:  # equal texts, not equal sets
        return _similarity(threshold, grams_of(list(plain)), least, np.arange(len(plain))[of_text], (), 0.0)
    grams, total = _without_passages(list(plain), least_left)
    for number in range(ROUNDS + 1):
        first, at = distinct_sets(grams)
        need = np.full(len(first), threshold)
        np.maximum.at(need, at, least)
        limit = max(CROWD, int(CROWD_SHARE * len(first)))
        pairs = linked(take_rows(first, grams), need, limit)
        crowds = [crowd for crowd in _crowds(pairs, at, limit) if least[crowd].min() < 1]
        if not crowds:
            break
        for crowd in crowds:
            grams = _separated(grams, least, crowd, last=number == ROUNDS - 1)
    links = tuple(zip(pairs.left.tolist(), pairs.right.tolist(), pairs.similarity.tolist(), strict=True))
    ignored = 1 - len(grams.values) / total
    return _similarity(threshold, take_rows(first, grams), need, at[of_text], links, ignored)


def _without_passages(texts: Sequence[str], least_left: int) -> tuple[Grams, int]:
    """(the grams of the texts without shared passages, the number of grams with them)."""
    left = without_passages(texts, least_left)
    grams = grams_of(left)
    cut = [i for i, text in enumerate(texts) if len(left[i]) < len(text)]
    before = len(grams_of([texts[i] for i in cut]).values)
    return grams, len(grams.values) - int(grams.sizes[cut].sum()) + before


def _crowds(pairs: Pairs, at: I64, limit: int) -> list[I64]:
    """The texts of each component of more than `limit` distinct sets."""
    label, size = component_sizes(pairs, int(at.max()) + 1)
    return [np.flatnonzero(label[at] == name) for name in np.unique(label[size > limit])]


def _separated(grams: Grams, least: F64, crowd: I64, last: bool) -> Grams:
    """The grams without those that most texts of the crowd share; where these are few, `least` of the crowd is raised
    in place."""
    reduced = _without_shared(grams, crowd)
    if last:
        least[crowd] = 1.0
    elif len(grams.values) - len(reduced.values) < STEP * int(grams.sizes[crowd].sum()):
        least[crowd] = np.minimum(1.0, least[crowd] + STEP)
    return reduced


def _without_shared(grams: Grams, rows: I64) -> Grams:
    """The grams without those that more than half of these rows have. They are removed also from other rows that have
    most of them, since not every row of a template is found to be in the crowd."""
    shared = _majority(gather(rows, grams), len(rows))
    if not len(shared):
        return grams
    marked = count_members(grams, shared) >= max(TEMPLATE_SHARE * len(shared), MIN_TEMPLATE_GRAMS)
    marked[rows] = True
    return remove_grams(grams, shared, marked)


def _majority(values: U32, rows: int) -> U32:
    """The grams (sorted) that more than half of the rows have, of the concatenated grams of all rows."""
    distinct, counts = np.unique(values, return_counts=True)
    return distinct[counts > rows / 2]


def _similarity(
    threshold: float, grams: Grams, least: F64, at: I64, links: tuple[tuple[int, int, float], ...], ignored: float
) -> Similarity:
    groups: list[list[int]] = [[] for _ in range(len(grams.sizes))]
    for text, set_ in enumerate(at.tolist()):
        groups[set_].append(text)
    return Similarity(threshold, grams, least, tuple(map(tuple, groups)), at, links, round(ignored, 4))
