"""Finds every near-duplicate pair between two sets of rows, exactly, by sparse matrix products in blocks.

Two sets reach a similarity t only if they share one of each one's rarest grams (prefix filter: Bayardo, Ma, Srikant,
"Scaling up all pairs similarity search", WWW 2007). A product of sparse matrices over rare grams finds the candidates
and counts the rare grams that they share. The most common grams, which would make the product expensive, are stored as
bits: the number of them that two rows share is the number of bits that both have.

    near_between(grams, least, left=np.array([0, 1]), right=np.array([2, 3]))    # yields (0, 3, 0.71)

Independent of minhash.py, which finds pairs by hashing and may miss some.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from finetune_pipeline.clean.minhash import F64
from finetune_pipeline.clean.shingles import I64, U64, Grams, take_rows

F32: TypeAlias = npt.NDArray[np.float32]

_COMMON = 1024  # most common grams, stored as bits: 128 bytes a row
_BLOCK = 1 << 21  # products computed at a time: bounds memory, does not change the result
_CHUNK = 1 << 14  # pairs whose bits are compared at a time
_ROUNDING = 1e-9  # 0.6 * 5 is 3.0000000000000004, which would make a prefix one gram too short
_SLACK = 0.5  # grams: the error of single precision is smaller, and the candidates are compared exactly
_FIND = 2.0**-20  # value of a common gram in a product: it marks a candidate without adding to the count


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of both sets: `matrix` [rows, ranks of grams], sparse, has rare grams as 1, and the common ones that the
    prefix filter needs as `_FIND`; `bits` [rows, words] has the common grams; `common` [rows] is their number."""

    matrix: Any
    bits: U64
    common: F32


def near_between(grams: Grams, least: F64, left: I64, right: I64) -> Iterator[tuple[int, int, float]]:
    """All (row of left, row of right, similarity) whose similarity reaches the `least` [rows] of both."""
    if not len(left) or not len(right):
        return
    at = np.concatenate([left, right])
    sets, need = take_rows(at, grams), least[at]
    rows, sizes = _rows(sets, need), sets.sizes.astype(np.float32)
    least_share = np.float32(need.min() / (1 + need.min()))  # Jaccard t, solved for the share of both sizes in common
    columns = rows.matrix[len(left) :].T.tocsr()
    for first, last in _blocks(rows.matrix[: len(left)], columns):
        product = (rows.matrix[first:last] @ columns).tocoo()
        i, j = product.row + first, product.col + len(left)
        shared = np.rint(product.data)
        enough = least_share * (sizes[i] + sizes[j]) - _SLACK
        likely = np.flatnonzero(shared + np.minimum(rows.common[i], rows.common[j]) >= enough)
        for k in np.array_split(likely, len(likely) // _CHUNK + 1):
            a_rows, b_rows = i[k], j[k]
            both = shared[k] + np.bitwise_count(rows.bits[a_rows] & rows.bits[b_rows]).sum(axis=1)
            t = np.maximum(need[a_rows], need[b_rows])
            for hit in np.flatnonzero(both >= t / (1 + t) * (sets.sizes[a_rows] + sets.sizes[b_rows]) - _SLACK):
                a, b = int(a_rows[hit]), int(b_rows[hit])
                similarity = _jaccard(sets, a, b)
                if similarity >= t[hit]:
                    yield int(at[a]), int(at[b]), similarity


def _jaccard(sets: Grams, i: int, j: int) -> float:
    left, right = (sets.values[sets.starts[k] : sets.starts[k] + sets.sizes[k]] for k in (i, j))
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def _rows(sets: Grams, need: F64) -> _Rows:
    from scipy.sparse import csr_array

    ranks, total = _ranked(sets)
    limit = max(0, total - _COMMON)
    count = len(sets.sizes)
    row = np.repeat(np.arange(count, dtype=np.int32), sets.sizes)
    prefix = sets.sizes - np.ceil(need * sets.sizes - _ROUNDING).astype(np.int64) + 1
    place = np.arange(len(ranks)) - np.repeat(sets.starts, sets.sizes)
    rare = ranks < limit
    kept = rare | (place < np.repeat(prefix, sets.sizes))
    ends = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=count))])
    narrow = np.int32 if ends[-1] < 2**31 else np.int64  # scipy uses the wider type for both
    data = np.where(rare[kept], np.float32(1), np.float32(_FIND))
    matrix = csr_array((data, ranks[kept], ends.astype(narrow)), shape=(count, total))
    bits = np.zeros((count, -(-_COMMON // 64)), np.uint64)
    word, bit = np.divmod(ranks[~rare] - limit, 64)
    np.bitwise_or.at(bits, (row[~rare], word), np.uint64(1) << bit.astype(np.uint64))
    return _Rows(matrix, bits, np.bincount(row[~rare], minlength=count).astype(np.float32))


def _ranked(sets: Grams) -> tuple[Any, int]:
    """(every gram as its rank from the rarest to the most common, ascending within each row; the number of ranks)."""
    _, ids, counts = np.unique(sets.values, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    keyed = (np.repeat(np.arange(len(sets.sizes)), sets.sizes) << 32) | rank[ids]
    keyed.sort()
    return (keyed & 0xFFFFFFFF).astype(np.int32), len(counts)


def _blocks(left: Any, columns: Any) -> Iterator[tuple[int, int]]:
    """Ranges (first, end) of left rows whose products fit in a block."""
    per_gram = np.diff(columns.indptr)
    cost = np.concatenate([[0], np.cumsum(per_gram[left.indices])])[left.indptr]
    first, rows = 0, left.shape[0]
    while first < rows:
        last = int(np.searchsorted(cost, cost[first] + _BLOCK, side="right")) - 1
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last
