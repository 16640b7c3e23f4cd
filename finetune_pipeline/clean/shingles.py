"""Converts texts to sets of hashed character 5-grams (shingles), all texts in one array.

    grams = grams_of(["where is my order", "refund"])     # grams.sizes: [13, 2]

Windows of 5 characters are hashed for a million characters at a time with whole-array operations; 32 bits are enough,
since two grams of a pair of texts collide once in millions. The texts are normalized before (normalize.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

U32: TypeAlias = npt.NDArray[np.uint32]
U64: TypeAlias = npt.NDArray[np.uint64]
I64: TypeAlias = npt.NDArray[np.int64]
_Integer = TypeVar("_Integer", np.uint64, np.int64)

GRAM = 5
_CHUNK_GRAMS = 1 << 20


@dataclass(frozen=True, slots=True)
class Grams:
    """The sets of 5-gram hashes of all texts: row i has sizes[i] values from starts[i] on, sorted."""

    values: U32
    starts: I64
    sizes: I64


def grams_of(texts: Sequence[str]) -> Grams:
    """The set of hashes of the character 5-grams of each text. A text of fewer than 5 characters is one gram."""
    values: list[U32] = []
    sizes: list[I64] = []
    for chunk in _chunks(texts):
        hashed, row, inside = _windows(chunk)
        keys = sorted_unique((row[inside] << np.uint64(32)) | hashed[inside])
        values.append((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32))
        sizes.append(np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(chunk)))
    all_sizes = np.concatenate([*sizes, np.zeros(0, np.int64)])
    return _grams(np.concatenate([*values, np.zeros(0, np.uint32)]), all_sizes)


def _grams(values: U32, sizes: I64) -> Grams:
    return Grams(values, np.cumsum(sizes) - sizes, sizes)


def take_rows(rows: I64, grams: Grams) -> Grams:
    """The sets of these rows only, in this order."""
    return _grams(gather(rows, grams), grams.sizes[rows])


def remove_grams(grams: Grams, removed: U32, rows: npt.NDArray[np.bool_]) -> Grams:
    """The sets without the grams in `removed` (sorted), for the marked rows ([rows] of bool). A row that has no other
    gram keeps its set: the similarity of an empty set is undefined."""
    row = np.repeat(np.arange(len(grams.sizes)), grams.sizes)
    kept = ~_among(grams.values, removed) | ~rows[row]
    left = np.bincount(row[kept], minlength=len(grams.sizes))
    kept |= (left == 0)[row]
    return _grams(grams.values[kept], np.bincount(row[kept], minlength=len(grams.sizes)))


def count_members(grams: Grams, wanted: U32) -> I64:
    """How many of `wanted` (sorted) each row has: [rows]."""
    row = np.repeat(np.arange(len(grams.sizes)), grams.sizes)
    return np.bincount(row[_among(grams.values, wanted)], minlength=len(grams.sizes))


def _among(values: U32, wanted: U32) -> npt.NDArray[np.bool_]:
    members: npt.NDArray[np.bool_] = wanted[np.searchsorted(wanted, values).clip(max=len(wanted) - 1)] == values
    return members


def distinct_sets(grams: Grams) -> tuple[I64, I64]:
    """(one row for each distinct set, for every row the position of its set among these)."""
    if not len(grams.sizes):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    wide = grams.values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    sums = np.add.reduceat(mix64(wide), grams.starts)
    _, first, at = np.unique(sums, return_index=True, return_inverse=True)
    return first.astype(np.int64), at.astype(np.int64)


def _chunks(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts padded to at least one gram, in chunks of about a million characters."""
    chunk: list[str] = []
    room = _CHUNK_GRAMS
    for text in texts:
        padded = text.ljust(GRAM)
        chunk.append(padded)
        room -= len(padded)
        if room <= 0:
            yield chunk
            chunk, room = [], _CHUNK_GRAMS
    if chunk:
        yield chunk


def _windows(chunk: Sequence[str]) -> tuple[U32, U64, npt.NDArray[np.bool_]]:
    """For every window of 5 characters of the concatenated texts: its hash, the text in which it begins, and whether it
    ends in the same text."""
    codes = np.frombuffer("".join(chunk).encode("utf-32-le", "surrogatepass"), np.uint32)
    lengths = np.fromiter(map(len, chunk), np.int64, len(chunk))
    hashed = np.zeros(len(codes) - GRAM + 1, np.uint32)
    for offset in range(GRAM):
        hashed = mix(hashed * np.uint32(0x9E3779B1) + codes[offset : offset + len(hashed)])
    row = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)[: len(hashed)]
    ends = np.cumsum(lengths)[row.astype(np.int64)]
    inside = np.arange(len(hashed)) + GRAM <= ends  # a window that crosses into the next text belongs to none
    return hashed, row, inside


def mix(x: U32) -> U32:
    """Bijective mixing of 32 bits (the first round of murmur3's finalizer)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    return x ^ (x >> np.uint32(13))


def mix64(x: U64) -> U64:
    """Bijective mixing of 64 bits: xor-shift, multiplication by an odd number, xor-shift."""
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(29))


def sorted_unique(values: npt.NDArray[_Integer]) -> npt.NDArray[_Integer]:
    """All values, each once, sorted. Sorts the argument in place, since it may be large.

    The hash table of `np.unique` is slow on the codes of pairs, many of which are multiples of the number of rows.
    """
    values.sort()
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def gather(rows: I64, grams: Grams) -> U32:
    """The grams of these rows, concatenated."""
    sizes = grams.sizes[rows]
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    values: U32 = grams.values[np.repeat(grams.starts[rows], sizes) + offset]
    return values
