"""Near-duplicate texts: MinHash finds candidates, the exact Jaccard similarity decides. Columnar numpy, bounded memory.

Two texts are near duplicates when the Jaccard similarity of their sets of character 5-grams (after normalise.py)
reaches a threshold: |A ∩ B| / |A ∪ B|. Characters, since one changed word of a short question is one fifth of its
words but a tenth of its 5-grams, and since they need no word boundaries.

MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3): a pair of similarity
s meets in at least one of b bands of r hashes with probability 1 - (1 - s^r)^b. The bands are chosen from the
threshold so that this is at least 0.995 there; every candidate is verified, so that nothing below the threshold is
ever reported. What it is not: a search for texts that mean the same.

    pairs(["where is my order?", "Where is my orders", "refund!"], 0.6)    # [(0, 1, 0.93)]
    clusters([...], 0.6)                                                    # [[(0, 0.93), (1, 0.93)]]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from finetune_pipeline.clean.grams import I64, U32, Grams, gathered, grams_of, mixed
from finetune_pipeline.clean.normalise import normalise

HASHES = 126  # 21 bands of 6, 42 of 3, 63 of 2
RECALL = 0.995  # of a pair exactly at the threshold
SLACK = 0.15  # estimated similarity may lie this far below the threshold: four standard errors of 126 hashes
_CACHED_GRAMS = 1 << 17
_CHUNK_PAIRS = 1 << 14
_WAITING_PAIRS = 1 << 21
_TWINS = 8  # equal texts of which all pairs are formed
_CROWD = 128  # rows in one bucket from which its pairs are not all formed


@dataclass(frozen=True, slots=True)
class Index:
    """What candidates are verified with: the sets, their signatures (rows × HASHES), and the threshold."""

    grams: Grams
    signatures: U32
    threshold: float


def clusters(texts: Sequence[str], threshold: float, seed: int = 0) -> list[list[tuple[int, float]]]:
    """Groups of texts that are linked by near-duplicate pairs, also over several steps.

    Each group has two or more (index, similarity), in order of index: the similarity to the nearest other member.
    Groups are in order of their first member; texts that resemble no other are in none.
    """
    found = pairs(texts, threshold, seed)
    parent = list(range(len(texts)))
    nearest: dict[int, float] = {}
    for one, other, similarity in found:
        a, b = _root(parent, one), _root(parent, other)
        parent[max(a, b)] = min(a, b)
        for index in (one, other):
            nearest[index] = max(nearest.get(index, 0.0), similarity)
    groups: dict[int, list[tuple[int, float]]] = {}
    for index in sorted(nearest):
        groups.setdefault(_root(parent, index), []).append((index, nearest[index]))
    return [groups[first] for first in sorted(groups)]


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def pairs(texts: Sequence[str], threshold: float, seed: int = 0) -> list[tuple[int, int, float]]:
    """Pairs (i, j, similarity) with i < j and similarity >= threshold, in order.

    Not all pairs of a crowd are formed, only enough to link it, since their number grows with its square: of more than
    128 texts that share a band those with a leader (a text near no earlier leader), and of more than 8 texts that are
    equal after normalising those with the first.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} is not in (0, 1]")
    twins: dict[str, list[int]] = {}
    for index, text in enumerate(texts):
        twins.setdefault(normalise(text), []).append(index)
    groups = list(twins.values())
    found = {(i, j): 1.0 for group in groups for i, j in _pairs_of_twins(group)}
    if threshold < 1:
        for a, b, similarity in _near(grams_of(list(twins)), threshold, seed):
            found |= {(min(i, j), max(i, j)): similarity for i in groups[a][:_TWINS] for j in groups[b][:_TWINS]}
    return [(i, j, similarity) for (i, j), similarity in sorted(found.items())]


def _pairs_of_twins(group: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each pair of the first few, and each other index with the first."""
    for at, index in enumerate(group[1:], 1):
        yield from ((other, index) for other in (group[:at] if at < _TWINS else group[:1]))


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, hashes per band): the most selective that still find a pair at the threshold with probability RECALL."""
    for width in range(12, 1, -1):
        bands = HASHES // width
        if 1 - (1 - threshold**width) ** bands >= RECALL:
            return bands, width
    return HASHES, 1


def _near(grams: Grams, threshold: float, seed: int) -> list[tuple[int, int, float]]:
    """Candidates of all bands, each pair verified once (as long as a few million fit into memory at a time)."""
    index = Index(grams, _signatures(grams, seed), threshold)
    found: dict[tuple[int, int], float] = {}
    waiting: list[I64] = []
    rows, count = len(grams.starts), 0
    bands, width = bands_for(threshold)
    for band in range(bands):
        order, edges = _buckets(_band_keys(index.signatures[:, band * width : (band + 1) * width]))
        for left, right in _candidates(order, edges):
            waiting.append(left * rows + right)
            count += len(left)
            if count > _WAITING_PAIRS:
                _verify(waiting, rows, index, found)
                count = 0
        for start, end in pairwise(edges):
            if end - start > _CROWD:
                _link_crowd(order[start:end], index, found)
    _verify(waiting, rows, index, found)
    return [(a, b, similarity) for (a, b), similarity in found.items()]


def _verify(waiting: list[I64], rows: int, index: Index, found: dict[tuple[int, int], float]) -> None:
    """Move the waiting pairs (left * rows + right) that are near duplicates into `found`."""
    codes = np.unique(np.concatenate([*waiting, np.zeros(0, np.int64)]))
    waiting.clear()
    for at in range(0, len(codes), _CHUNK_PAIRS):
        left, right = np.divmod(codes[at : at + _CHUNK_PAIRS], rows)
        similarity = _similarity(left, right, index)
        for k in np.flatnonzero(similarity >= index.threshold):
            found[int(left[k]), int(right[k])] = float(similarity[k])


def _signatures(grams: Grams, seed: int) -> U32:
    """Rows × HASHES: the smallest value of each of HASHES random hash functions over the row's set."""
    random = np.random.default_rng(seed)
    factors = random.integers(1, 2**32, HASHES, dtype=np.uint32) | np.uint32(1)
    shifts = random.integers(0, 2**32, HASHES, dtype=np.uint32)
    result = np.empty((len(grams.starts), HASHES), np.uint32)
    for first, last in _row_chunks(grams):
        start, end = grams.starts[first], grams.starts[last - 1] + grams.sizes[last - 1]
        values, starts = grams.values[start:end], grams.starts[first:last] - start
        for k in range(HASHES):
            result[first:last, k] = np.minimum.reduceat(mixed(values * factors[k] + shifts[k]), starts)
    return result


def _row_chunks(grams: Grams) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose values fit into the processor's cache."""
    first, rows = 0, len(grams.starts)
    while first < rows:
        last = int(np.searchsorted(grams.starts, grams.starts[first] + _CACHED_GRAMS))
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last


def _band_keys(part: U32) -> npt.NDArray[np.uint64]:
    key = np.zeros(len(part), np.uint64)
    for column in part.T:
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _buckets(keys: npt.NDArray[np.uint64]) -> tuple[I64, I64]:
    """Rows ordered by key, and where each key begins in that order (with the end as the last)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    return order, np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))


def _candidates(order: I64, edges: I64) -> Iterator[tuple[I64, I64]]:
    """Arrays of rows (left < right) that share a bucket of up to _CROWD rows, in pieces."""
    sizes = np.diff(edges)
    for size in range(2, _CROWD + 1):
        starts = edges[:-1][sizes == size]
        if len(starts):
            yield from _all_pairs(order[starts[:, None] + np.arange(size)])


def _all_pairs(rows: I64) -> Iterator[tuple[I64, I64]]:
    """All pairs within each line of `rows` (buckets × size)."""
    one, other = np.triu_indices(rows.shape[1], 1)
    step = max(1, _CHUNK_PAIRS // len(one))
    for at in range(0, len(rows), step):
        part = rows[at : at + step]
        yield part[:, one].ravel(), part[:, other].ravel()


def _link_crowd(rows: I64, index: Index, found: dict[tuple[int, int], float]) -> None:
    """Pairs of each leader with the rows near it; those may no longer become leaders. One leader is compared with all
    rows at once, by a table of which grams it has."""
    sizes = index.grams.sizes[rows]
    starts = np.cumsum(sizes) - sizes
    _, ids = np.unique(gathered(rows, index.grams), return_inverse=True)
    has = np.zeros(int(ids.max()) + 1, bool)
    free = np.ones(len(rows), bool)
    for k, row in enumerate(rows):
        if not free[k]:
            continue
        own = ids[starts[k] : starts[k] + sizes[k]]
        has[own] = True
        shared = np.add.reduceat(has[ids], starts, dtype=np.int64)
        has[own] = False
        similarity = shared / (sizes[k] + sizes - shared)
        near = similarity >= index.threshold
        free &= ~near
        for other in np.flatnonzero(near & (rows != row)):
            pair = (int(row), int(rows[other]))
            found[min(pair), max(pair)] = float(similarity[other])


def _similarity(left: I64, right: I64, index: Index) -> npt.NDArray[np.float64]:
    """Exact Jaccard similarity of each pair, or 0 where the sizes or the signatures rule the threshold out."""
    result = np.zeros(len(left))
    a, b = index.grams.sizes[left], index.grams.sizes[right]
    likely = np.flatnonzero(np.minimum(a, b) >= index.threshold * np.maximum(a, b))
    estimate = (index.signatures[left[likely]] == index.signatures[right[likely]]).mean(axis=1)
    likely = likely[estimate >= index.threshold - SLACK]
    for at in range(0, len(likely), 2048):
        part = likely[at : at + 2048]
        shared = _shared(left[part], right[part], index.grams)
        result[part] = shared / (a[part] + b[part] - shared)
    return result


def _shared(left: I64, right: I64, grams: Grams) -> I64:
    """How many grams each pair has in common: what stands twice when both sets are sorted together."""
    keys = np.concatenate([_keyed(left, grams), _keyed(right, grams)])
    keys.sort()
    twice = keys[1:][keys[1:] == keys[:-1]]
    return np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=len(left))


def _keyed(rows: I64, grams: Grams) -> npt.NDArray[np.uint64]:
    """The grams of `rows`, each with the position of its row in the upper 32 bits."""
    position = np.repeat(np.arange(len(rows), dtype=np.uint64), grams.sizes[rows])
    keys: npt.NDArray[np.uint64] = (position << np.uint64(32)) | gathered(rows, grams)
    return keys
