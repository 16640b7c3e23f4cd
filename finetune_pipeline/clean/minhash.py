"""Finds near-duplicate sets of grams by MinHash, and verifies each pair exactly. Columnar numpy, bounded memory.

MinHash with banding (Broder 1997; Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3): a pair of similarity
s is equal in at least one of b bands of r hashes with probability 1 - (1 - s^r)^b. The bands are chosen from the
threshold so that this is at least 0.995 there; every candidate is verified, so that no pair below the threshold is
reported.

    pairs = linked(grams, np.full(3, 0.6), crowd=500)      # Pairs(left=[0], right=[2], similarity=[0.93])

similarity.py defines which grams are compared and from which similarity; exact.py finds every pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finetune_pipeline.clean.shingles import I64, U32, U64, Grams, gather, mix, sorted_unique

HASHES = 126  # 21 bands of 6, 42 of 3, 63 of 2
RECALL = 0.995  # of a pair exactly at the threshold
SLACK = 0.15  # of the estimated similarity below the threshold: four standard errors of 126 hashes
_SEED = 0
_CACHED_GRAMS = 1 << 17
_CHUNK_PAIRS = 1 << 14
_FULL_BUCKET = 128  # a bucket of more rows is full: not all of its pairs are formed
_LEADERS = 32  # rows of a full bucket that are compared with all others in it

F64: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of positions (left < right) and their Jaccard similarity, each pair once."""

    left: I64
    right: I64
    similarity: F64


@dataclass(frozen=True, slots=True)
class _Index:
    """What candidates are verified with: the sets, their signatures [rows, HASHES], and the least similarity [rows]."""

    grams: Grams
    signatures: U32
    least: F64


def linked(grams: Grams, least: F64, crowd: int) -> Pairs:
    """Pairs whose similarity reaches the `least` [rows] of both rows. All sets have to be distinct.

    Rows linked to more than `crowd` others are left out of the bands that follow: the pairs found so far show that they
    are a crowd, and the number of their pairs would grow with its square. Without a crowd the pairs are complete
    (RECALL).
    """
    rows = len(grams.sizes)
    parts = [Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    if rows < 2 or least.min() >= 1:
        return parts[0]
    index = _Index(grams, signatures(grams), least)
    seen = np.zeros(0, np.int64)
    active = np.arange(rows)
    bands, width = bands_for(float(least.min()))
    for band in range(bands):
        order, edges = _buckets(band_keys(index.signatures[active, band * width : (band + 1) * width]))
        codes = sorted_unique(np.concatenate([seen[:0], *_codes(active[order], edges, index)]))
        codes = codes[~_contains(seen, codes)]
        seen = sorted_unique(np.concatenate([seen, codes]))
        parts += _verified(codes, index)
        active = np.flatnonzero(component_sizes(_concatenated(parts), rows)[1] <= crowd)
    return _concatenated(parts)


def _concatenated(parts: list[Pairs]) -> Pairs:
    if len(parts) > 1:
        columns = ([p.left for p in parts], [p.right for p in parts])
        left, right = (np.concatenate(column) for column in columns)
        parts[:] = [Pairs(left, right, np.concatenate([p.similarity for p in parts]))]
    return parts[0]


def component_sizes(pairs: Pairs, rows: int) -> tuple[I64, I64]:
    """(the connected component of each row, the number of rows of that component): both [rows]."""
    labels = components(pairs.left, pairs.right, rows)
    return labels, np.bincount(labels)[labels]


def components(left: I64, right: I64, rows: int) -> I64:
    """The connected component of each row ([rows]) in the graph with an edge from each of `left` to that of `right`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(left), np.int8), (left, right)), shape=(rows, rows))
    labels: I64 = connected_components(edges, directed=False)[1]
    return labels


def bands_for(threshold: float) -> tuple[int, int]:
    """(bands, hashes per band): the most selective ones that find a pair at the threshold with probability RECALL."""
    for width in range(12, 1, -1):
        bands = HASHES // width
        if 1 - (1 - threshold**width) ** bands >= RECALL:
            return bands, width
    return HASHES, 1


def signatures(grams: Grams) -> U32:
    """[rows, HASHES]: the smallest value of each of HASHES random hash functions over the row's set. The functions are
    always the same, so that signatures can be stored and compared later."""
    random = np.random.default_rng(_SEED)
    factors = random.integers(1, 2**32, HASHES, dtype=np.uint32) | np.uint32(1)
    shifts = random.integers(0, 2**32, HASHES, dtype=np.uint32)
    result = np.empty((len(grams.starts), HASHES), np.uint32)
    for first, last in _row_chunks(grams):
        start, end = grams.starts[first], grams.starts[last - 1] + grams.sizes[last - 1]
        values, starts = grams.values[start:end], grams.starts[first:last] - start
        for k in range(HASHES):
            result[first:last, k] = np.minimum.reduceat(mix(values * factors[k] + shifts[k]), starts)
    return result


def _row_chunks(grams: Grams) -> Iterator[tuple[int, int]]:
    """Ranges (first, end) of rows whose values fit in the processor's cache."""
    first, rows = 0, len(grams.starts)
    while first < rows:
        last = int(np.searchsorted(grams.starts, grams.starts[first] + _CACHED_GRAMS))
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last


def band_keys(part: npt.NDArray[np.unsignedinteger]) -> U64:
    """One key for each row of a band: [rows]."""
    key = np.zeros(len(part), np.uint64)
    for column in part.T:
        key = (key ^ column) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _buckets(keys: U64) -> tuple[I64, I64]:
    """(rows sorted by key, where each key begins in that order, with the end as the last)."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    if not len(keys):
        return order, np.zeros(1, np.int64)
    return order, np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))


def _codes(order: I64, edges: I64, index: _Index) -> Iterator[I64]:
    """Candidates of one band as left * rows + right, left < right: all pairs of a bucket, or, of a full one, each
    leader with the rows near it."""
    rows = len(index.least)
    sizes = np.diff(edges)
    for size in range(2, _FULL_BUCKET + 1):
        starts = edges[:-1][sizes == size]
        if len(starts):
            bucket = np.sort(order[starts[:, None] + np.arange(size)], axis=1)
            left, right = np.triu_indices(size, 1)
            yield (bucket[:, left] * rows + bucket[:, right]).ravel()
    for start, end in pairwise(edges):
        if end - start > _FULL_BUCKET:
            left, right = _leader_pairs(order[start:end], index)
            yield np.minimum(left, right) * rows + np.maximum(left, right)


def _leader_pairs(rows: I64, index: _Index) -> tuple[I64, I64]:
    """Pairs of each leader with the rows near it, which can no longer become leaders. A leader is compared with all
    rows at once, by a table of the grams it has."""
    part = index.grams.sizes[rows]
    starts = np.cumsum(part) - part
    _, ids = np.unique(gather(rows, index.grams), return_inverse=True)
    free = np.ones(len(rows), bool)
    pairs: list[tuple[I64, I64]] = []
    for _ in range(_LEADERS):
        if not free.any():
            break
        k = int(np.argmax(free))
        has = np.zeros(int(ids.max()) + 1, bool)
        has[ids[starts[k] : starts[k] + part[k]]] = True
        shared = np.add.reduceat(has[ids], starts, dtype=np.int64)
        near = shared >= index.least[rows[k]] * (part[k] + part - shared)
        near[k] = True
        free &= ~near
        others = rows[near & (rows != rows[k])]
        pairs.append((np.full(len(others), rows[k]), others))
    return np.concatenate([left for left, _ in pairs]), np.concatenate([right for _, right in pairs])


def _contains(sorted_codes: I64, codes: I64) -> npt.NDArray[np.bool_]:
    if not len(sorted_codes):
        return np.zeros(len(codes), bool)
    places = np.searchsorted(sorted_codes, codes).clip(max=len(sorted_codes) - 1)
    contained: npt.NDArray[np.bool_] = sorted_codes[places] == codes
    return contained


def _verified(codes: I64, index: _Index) -> Iterator[Pairs]:
    """The candidates (left * rows + right) that are near duplicates."""
    for at in range(0, len(codes), _CHUNK_PAIRS):
        left, right = np.divmod(codes[at : at + _CHUNK_PAIRS], len(index.least))
        need = np.maximum(index.least[left], index.least[right])
        similarity = _similarity(left, right, index, need)
        near = similarity >= need
        yield Pairs(left[near], right[near], similarity[near])


def _similarity(left: I64, right: I64, index: _Index, need: F64) -> F64:
    """Exact Jaccard similarity of each pair, or 0 where sizes or signatures rule out the needed one: [pairs]."""
    result = np.zeros(len(left))
    a, b = index.grams.sizes[left], index.grams.sizes[right]
    likely = np.flatnonzero(np.minimum(a, b) >= need * np.maximum(a, b))
    estimate = (index.signatures[left[likely]] == index.signatures[right[likely]]).mean(axis=1)
    likely = likely[estimate >= need[likely] - SLACK]
    result[likely] = jaccard(left[likely], right[likely], index.grams)
    return result


def jaccard(left: I64, right: I64, grams: Grams) -> F64:
    """Exact Jaccard similarity of each pair: [pairs]. Memory is bounded by a few thousand pairs at a time."""
    result = np.zeros(len(left))
    for at in range(0, len(left), 2048):
        part = slice(at, at + 2048)
        shared = _shared(left[part], right[part], grams)
        result[part] = shared / (grams.sizes[left[part]] + grams.sizes[right[part]] - shared)
    return result


def _shared(left: I64, right: I64, grams: Grams) -> I64:
    """How many grams each pair shares: those that occur twice when both sets are sorted together."""
    keys = np.concatenate([_keyed(left, grams), _keyed(right, grams)])
    keys.sort()
    twice = keys[1:][keys[1:] == keys[:-1]]
    return np.bincount((twice >> np.uint64(32)).astype(np.int64), minlength=len(left))


def _keyed(rows: I64, grams: Grams) -> U64:
    """The grams of `rows`, each with the position of its row in the upper 32 bits."""
    position = np.repeat(np.arange(len(rows), dtype=np.uint64), grams.sizes[rows])
    keys: U64 = (position << np.uint64(32)) | gather(rows, grams)
    return keys
