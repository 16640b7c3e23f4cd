"""How alike two texts of a collection are: the one definition that cleaning, the split and its check all use.

Two texts are near duplicates when the Jaccard similarity of their sets of character 5-grams (after normalize.py)
reaches a threshold: |A ∩ B| / |A ∪ B|. Characters, since one changed word of a short question is one fifth of its
words but a tenth of its 5-grams, and since they need no word boundaries.

What many texts share does not make two of them alike. An instruction of 500 characters before each question, or one
template with other names in it, would make every two rows near duplicates. So:

1. Passages of 64 characters and more that many texts hold are cut out of them (passages.py, from 20 texts on). Shorter
   ones, such as common phrases, count like any other text.
2. Texts that are then still linked in a crowd (more than 5 % of the texts, 50 at least) come from one template: what
   more than half of the crowd holds is left out of its texts. Where that does not part them, they are near duplicates
   of each other only from a higher similarity, a tenth more each time.

What is left out makes two rows alike that are not (one message under two instructions), and parts rows that belong
together (fifty copies of one complaint that differ in its number). So a row is dropped as a duplicate only where the
whole texts are alike as well (`resemblance`), and the split asks that enough is left to tell rows apart (`least_left`).

    alike = measure(["where is my order?", "Where is my orders", "refund!"], 0.6)
    list(alike.pairs())          # [(0, 1, 0.86)]        alike.clusters()      # [[0, 1]]
    list(alike.between([0], [1, 2]))                     # [(0, 1, 0.86)], every pair, found without chance
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_pipeline.clean.exact import near_between
from finetune_pipeline.clean.minhash import F64, Pairs, component_sizes, linked
from finetune_pipeline.clean.normalize import normalize
from finetune_pipeline.clean.passages import without_passages
from finetune_pipeline.clean.shingles import (
    I64,
    U32,
    Grams,
    distinct,
    gathered,
    grams_of,
    held,
    taken,
    without,
)

CROWD, CROWD_SHARE = 50, 0.05  # a component of more distinct texts than both is a crowd
HOLDS_MOST = 0.8  # share of a template's grams from which a text is taken to come from it
FEW_GRAMS = 8  # fewer say nothing about where a text comes from
STEP = 0.1  # by which the similarity that a crowd needs rises
ROUNDS = 12  # of taking crowds apart; what is a crowd then needs equal sets
_TWINS = 8  # equal texts of which all pairs are formed


@dataclass(frozen=True, slots=True)
class Similarity:
    """Texts as they are compared: the distinct sets of `grams`, the `least` similarity each needs, `groups` of the
    positions of the texts that have the same set, the place of each text's set (`at`), pairs of sets that are near
    (`links`), and the share of the grams that was `ignored` since many texts hold them."""

    threshold: float
    grams: Grams
    least: F64
    groups: tuple[tuple[int, ...], ...]
    at: I64
    links: tuple[tuple[int, int, float], ...]
    ignored: float

    def raised(self) -> dict[str, int]:
        """How many texts need more than the threshold, since they come from one template: {"0.7": 310}."""
        needs = np.round(self.least[self.at], 2) if len(self.at) else np.zeros(0)
        values, counts = np.unique(needs[needs > self.threshold + STEP / 2], return_counts=True)
        return {f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)}

    def pairs(self) -> Iterator[tuple[int, int, float]]:
        """(i, j, similarity), i < j, each once: all near duplicates (but for the recall of minhash.py). Of more than 8
        texts with the same set only the pairs with the first are formed, which is enough to link them."""
        for group in self.groups:
            for n, j in enumerate(group[1:], 1):
                yield from ((i, j, 1.0) for i in (group[:n] if n < _TWINS else group[:1]))
        for a, b, similarity in self.links:
            for i in self.groups[a][:_TWINS]:
                yield from ((min(i, j), max(i, j), similarity) for j in self.groups[b][:_TWINS])

    def clusters(self) -> list[list[int]]:
        """Positions of texts that near duplicates link, also over several steps: two or more each, in order."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        rows = len(self.groups)
        a, b = [link[0] for link in self.links], [link[1] for link in self.links]
        _, labels = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(rows, rows)), directed=False)
        found: dict[int, list[int]] = {}
        for label, group in zip(labels.tolist(), self.groups, strict=True):
            found.setdefault(label, []).extend(group)
        return sorted(sorted(members) for members in found.values() if len(members) > 1)

    def between(self, left: Sequence[int], right: Sequence[int]) -> Iterator[tuple[int, int, float]]:
        """Near duplicates between two sides, exactly. Texts with equal sets stand for each other: every text that has
        a near duplicate on the other side is named, not every pair."""
        one, other = self._by_set(left), self._by_set(right)
        if self.threshold >= 1:  # equal texts, not equal sets
            for place in sorted(one.keys() & other.keys()):
                yield from star(one[place], other[place], 1.0)
            return
        sides = (np.array(sorted(side), np.int64) for side in (one, other))
        for a, b, similarity in near_between(self.grams, self.least, *sides):
            yield from star(one[a], other[b], similarity)

    def _by_set(self, texts: Sequence[int]) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for text in texts:
            found.setdefault(int(self.at[text]), []).append(text)
        return found


def star(left: Sequence[int], right: Sequence[int], similarity: float) -> Iterator[tuple[int, int, float]]:
    """Each of `left` with the first of `right`, and each other of `right` with the first of `left`: all are named, and
    linked, without a number of pairs that grows with the square."""
    yield from ((i, right[0], similarity) for i in left)
    yield from ((left[0], j, similarity) for j in right[1:])


def resemblance(one: str, other: str) -> float:
    """The Jaccard similarity of two whole texts, nothing left out."""
    left, right = (set(grams_of([normalize(text)]).values.tolist()) for text in (one, other))
    return len(left & right) / len(left | right)


def measure(texts: Sequence[str], threshold: float, least_left: int = 1) -> Similarity:
    """What of these texts is compared, and how alike two have to be. With a threshold of 1 only texts that are equal
    (after normalize.py) count. `least_left`: characters that have to be left beside a passage that is no usual one
    (passages.py). ValueError for a threshold outside (0, 1]."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is not in (0, 1]")
    plain: dict[str, int] = {}
    of_text = np.array([plain.setdefault(normalize(text), len(plain)) for text in texts], np.int64)
    least = np.full(len(plain), threshold)
    if threshold >= 1 or not texts:  # equal texts, not equal sets
        return _similarity(threshold, grams_of(list(plain)), least, np.arange(len(plain))[of_text], (), 0.0)
    grams, total = _compared(list(plain), least_left)
    for number in range(ROUNDS + 1):
        first, at = distinct(grams)
        need = np.full(len(first), threshold)
        np.maximum.at(need, at, least)
        limit = max(CROWD, int(CROWD_SHARE * len(first)))
        found = linked(taken(first, grams), need, limit)
        crowds = [crowd for crowd in _crowds(found, at, limit) if least[crowd].min() < 1]
        if not crowds:
            break
        for crowd in crowds:
            grams = _parted(grams, least, crowd, last=number == ROUNDS - 1)
    links = tuple(zip(found.left.tolist(), found.right.tolist(), found.similarity.tolist(), strict=True))
    ignored = 1 - len(grams.values) / total
    return _similarity(threshold, taken(first, grams), need, at[of_text], links, ignored)


def _compared(texts: Sequence[str], least_left: int) -> tuple[Grams, int]:
    """The grams without shared passages, and how many there were with them."""
    left = without_passages(texts, least_left)
    grams = grams_of(left)
    cut = [i for i, text in enumerate(texts) if len(left[i]) < len(text)]
    before = len(grams_of([texts[i] for i in cut]).values)
    return grams, len(grams.values) - int(grams.sizes[cut].sum()) + before


def _crowds(found: Pairs, at: I64, limit: int) -> list[I64]:
    """The texts of each component of more than `limit` distinct sets."""
    label, size = component_sizes(found, int(at.max()) + 1)
    return [np.flatnonzero(label[at] == name) for name in np.unique(label[size > limit])]


def _parted(grams: Grams, least: F64, crowd: I64, last: bool) -> Grams:
    """Leave out what most texts of the crowd share; where that is little, raise the similarity they need instead."""
    slim = _stripped(grams, crowd)
    if last:
        least[crowd] = 1.0
    elif len(grams.values) - len(slim.values) < STEP * int(grams.sizes[crowd].sum()):
        least[crowd] = np.minimum(1.0, least[crowd] + STEP)
    return slim


def _stripped(grams: Grams, rows: I64) -> Grams:
    """Without the grams that more than half of these rows hold; left out also where others hold most of them, since
    not every row of a template is found to be in the crowd."""
    shared = _shared(gathered(rows, grams), len(rows))
    if not len(shared):
        return grams
    marked = held(grams, shared) >= max(HOLDS_MOST * len(shared), FEW_GRAMS)
    marked[rows] = True
    return without(grams, shared, marked)


def _shared(values: U32, rows: int) -> U32:
    """The grams (sorted) that more than half of the rows hold, of all grams that they hold."""
    found, counts = np.unique(values, return_counts=True)
    return found[counts > rows / 2]


def _similarity(
    threshold: float, grams: Grams, least: F64, at: I64, links: tuple[tuple[int, int, float], ...], ignored: float
) -> Similarity:
    groups: list[list[int]] = [[] for _ in range(len(grams.sizes))]
    for text, place in enumerate(at.tolist()):
        groups[place].append(text)
    return Similarity(threshold, grams, least, tuple(map(tuple, groups)), at, links, round(ignored, 4))
