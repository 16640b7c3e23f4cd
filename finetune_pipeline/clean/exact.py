"""Every near-duplicate pair between two sides, found without chance: what a check needs. Sparse products in blocks.

Two sets reach a similarity t only if they share one of each one's rarest grams (prefix filter: Bayardo, Ma, Srikant,
"Scaling up all pairs similarity search", WWW 2007). So a product of sparse matrices over rare grams alone counts what
candidates share; more grams than the filter needs are taken as long as the product stays cheap. A pair is verified only
if what it shares and all the grams it left out could together reach t, which few do.

    near_between(grams, least, left=np.array([0, 1]), right=np.array([2, 3]))    # yields (0, 3, 0.71)

What it is not: the finder that uses hashing (near.py), of which this is independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_pipeline.clean.grams import I64, Grams, taken
from finetune_pipeline.clean.near import F64, jaccard

_BUDGET = 20_000  # products per row of the left side that may be spent on grams the filter does not need
_BLOCK = 1 << 21  # products computed at a time: bounds memory, changes nothing
_ROUNDING = 1e-9  # 0.6 * 5 is 3.0000000000000004, which would make a prefix one gram too short


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of each row its rarest grams: a sparse matrix (rows × ranks of grams), how many grams were `left` out, and the
    rank of the commonest gram kept (`last`): whatever has a lower rank is kept."""

    matrix: Any
    left: I64
    last: I64


def near_between(grams: Grams, least: F64, left: I64, right: I64) -> Iterator[tuple[int, int, float]]:
    """All (row of left, row of right, similarity) whose similarity reaches the `least` of both."""
    if not len(left) or not len(right):
        return
    rows = np.concatenate([left, right])
    sets, need = taken(rows, grams), least[rows]
    kept = _kept(sets, need, len(left))
    columns = kept.matrix[len(left) :].T.tocsr()
    for first, last in _blocks(kept.matrix[: len(left)], columns):
        counted = (kept.matrix[first:last] @ columns).tocoo()
        i, j = counted.row.astype(np.int64) + first, counted.col.astype(np.int64) + len(left)
        likely = _could_reach(counted.data, i, j, sets.sizes, need, kept)
        i, j = i[likely], j[likely]
        similarity = jaccard(i, j, sets)
        for hit in np.flatnonzero(similarity >= np.maximum(need[i], need[j])):
            yield int(rows[i[hit]]), int(rows[j[hit]]), float(similarity[hit])


def _could_reach(shared: I64, i: I64, j: I64, sizes: I64, need: F64, kept: _Kept) -> I64:
    """Positions of the pairs that may share enough: t / (1 + t) of both sizes together (Jaccard t, solved for the
    intersection). Beyond the lower of the two `last` ranks they share at most what that row left out."""
    rest = np.where(kept.last[i] < kept.last[j], kept.left[i], kept.left[j])
    rest = np.where(kept.last[i] == kept.last[j], np.minimum(kept.left[i], kept.left[j]), rest)
    t = np.maximum(need[i], need[j])
    return np.flatnonzero(shared + rest >= t / (1 + t) * (sizes[i] + sizes[j]) - _ROUNDING)


def _kept(sets: Grams, need: F64, split: int) -> _Kept:
    """The rows' rarest grams: n - ceil(t n) + 1 of n, or more where the budget allows."""
    from scipy.sparse import csr_array

    ranks, limit = _ranked(sets, split)
    rows = len(sets.sizes)
    row = np.repeat(np.arange(rows), sets.sizes)
    cheap = np.bincount(row[ranks < limit], minlength=rows)
    prefix = sets.sizes - np.ceil(need * sets.sizes - _ROUNDING).astype(np.int64) + 1
    count = np.minimum(np.maximum(cheap, prefix), sets.sizes)
    place = np.arange(len(ranks)) - np.repeat(sets.starts, sets.sizes)
    stays = place < np.repeat(count, sets.sizes)
    ends = np.concatenate([[0], np.cumsum(count)])
    columns = int(ranks.max()) + 1
    matrix = csr_array((np.ones(len(ranks[stays]), np.int32), ranks[stays], ends), shape=(rows, columns))
    last = np.where(count == sets.sizes, columns, ranks[sets.starts + count - 1])
    last = np.maximum(last, np.where(count == cheap, limit - 1, 0))  # all below the limit was kept, had it been there
    return _Kept(matrix, sets.sizes - count, last)


def _ranked(sets: Grams, split: int) -> tuple[I64, int]:
    """Every gram as its rank from the rarest to the commonest, in rising order within each row; and the rank below
    which all grams together cost no more than the budget."""
    _, ids, counts = np.unique(sets.values, return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    ends = int(sets.starts[split]) if split < len(sets.starts) else len(sets.values)
    on_left = np.bincount(ids[:ends], minlength=len(counts))
    cost = np.cumsum((on_left * (counts - on_left))[order])
    limit = int(np.searchsorted(cost, _BUDGET * split, side="right"))
    keyed = (np.repeat(np.arange(len(sets.sizes)), sets.sizes) << 32) | rank[ids]
    keyed.sort()
    return keyed & 0xFFFFFFFF, limit


def _blocks(left: Any, columns: Any) -> Iterator[tuple[int, int]]:
    """Ranges of left rows whose products fit into a block."""
    per_gram = np.diff(columns.indptr)
    cost = np.concatenate([[0], np.cumsum(per_gram[left.indices])])[left.indptr]
    first, rows = 0, left.shape[0]
    while first < rows:
        last = int(np.searchsorted(cost, cost[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last
