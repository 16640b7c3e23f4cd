"""Passages that many texts share, cut out of each where they stand: instructions, disclaimers, long parts of templates.

    without_passages([f"{instruction} {question}" for question in questions])     # equal to questions

A passage has 64 characters or more, begins and ends with whole words, and stands in many different texts: 50 (half of
them where there are fewer than 100; 0.2 % where there are more than 25,000). It is cut by place, so that words which an
instruction and a question have in common stay in the question.

1. Every window of 64 characters is hashed, and counted once a text. Windows that half as many texts hold, one after the
   other, are a run. Of a run only windows count that at least half as many texts hold as its most frequent one: an
   instruction ends where the texts go on differently, though many of them go on with "how do I".
2. What a text has of a run is cut if many texts have exactly the same of it. Variants of one long text, each changed
   somewhere else, share windows but no such passage, and stay whole: they are duplicates. Variants that all differ in
   the same place (a number at the end) cannot be told from an instruction, and are cut. Where rows must not be parted
   by mistake (the split), `least_left` asks for more: of a passage that fewer than 5 % of the texts have, so many
   characters have to be left beside it, or the text stays whole.

Both steps are repeated until nothing is left to cut, since behind a passage that all share may stand one that some do.
Windows are counted in 16 million characters at most, of texts drawn by their hashes; passages in all texts. Pure.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from finetune_pipeline.clean.shingles import I64, U64

WINDOW = 64  # characters; a power of two
MANY, SHARE = 50, 0.002  # of the texts hold a passage, at least; half of them where that is less
USUAL = 0.05  # of the texts hold what is taken for an instruction, whatever is left beside it
FEW_TEXTS = 20  # with fewer nothing is known about what they share
_SAMPLE_CHARS = 1 << 24
_PIECE_CHARS = 1 << 20
_WORD = 24  # characters within which the border of a word is looked for; some languages have none
_ROUNDS = 6
_ROW_BITS = np.uint64(24)  # of a key; the other 40 are the window's hash


def without_passages(texts: Sequence[str], least_left: int = 1) -> list[str]:
    """The texts without the passages that many of them share. A text that is nothing else stays as it is, and one of
    which fewer than `least_left` characters would be left if the passage is no usual one (see above). Texts are to be
    normalized (single spaces) and distinct: what is said twice is no passage."""
    left = list(texts)
    for _ in range(_ROUNDS if len(texts) >= FEW_TEXTS else 0):
        found = _found(left, least_left)
        for row, places in found.items():
            left[row] = _cut(left[row], places)
        if not found:
            break
    return left


def _many(texts: int) -> float:
    return max(SHARE * texts, min(MANY, texts / 2))


def _found(texts: Sequence[str], least_left: int) -> dict[int, list[tuple[int, int]]]:
    """The places (begin, end) of passages, in order, by the position of the text; none that is the whole text."""
    sample = _sample(texts)
    least = _many(len(texts))
    shared, counts = _shared_windows(sample, least / 2 * len(sample) / len(texts))
    if not len(shared):
        return {}
    names: dict[str, int] = {}
    places = [
        (row, start, end, names.setdefault(texts[row][start:end], len(names)))
        for row, start, end in _runs(texts, shared, counts)
        if WINDOW <= end - start < len(texts[row])
    ]
    held = Counter(name for name, _ in {(name, row) for row, _, _, name in places})
    found, usual = defaultdict[int, list[tuple[int, int]]](list), defaultdict[int, list[tuple[int, int]]](list)
    for row, start, end, name in places:
        if held[name] >= least:
            found[row].append((start, end))
        if held[name] >= max(least, USUAL * len(texts)):
            usual[row].append((start, end))
    for row in [row for row in found if len(_cut(texts[row], found[row])) < least_left]:
        found[row] = usual[row]
    return {row: cut for row, cut in found.items() if cut}


def _cut(text: str, places: Sequence[tuple[int, int]]) -> str:
    ends = [0, *(end for _, end in places)]
    starts = [*(start for start, _ in places), len(text)]
    parts = (text[end:start].strip() for end, start in zip(ends, starts, strict=True))
    return " ".join(part for part in parts if part) or text


def _sample(texts: Sequence[str]) -> list[str]:
    """As many of the texts as have _SAMPLE_CHARS together; which ones does not depend on their order."""
    if sum(map(len, texts)) <= _SAMPLE_CHARS:
        return list(texts)
    drawn: list[str] = []
    room = _SAMPLE_CHARS
    for _, text in sorted((zlib.crc32(text.encode("utf-8", "surrogatepass")), text) for text in texts):
        drawn.append(text)
        room -= len(text)
        if room <= 0:
            break
    return drawn


def _shared_windows(texts: Sequence[str], least: float) -> tuple[U64, I64]:
    """The hashes (sorted) of the windows that `least` of these texts hold, two at least; how many texts hold each."""
    keys = [np.zeros(0, np.uint64)]
    for first, piece in _pieces(texts):
        hashed, row, _, inside = _windows(piece)
        keys.append((hashed[inside] << _ROW_BITS) | (row[inside] + first).astype(np.uint64))
    once = _each_once(np.concatenate(keys)) >> _ROW_BITS
    edges = np.flatnonzero(np.concatenate([[True], once[1:] != once[:-1], [True]])) if len(once) else np.zeros(1, int)
    counts = np.diff(edges)
    many = counts >= max(2.0, least)
    return once[edges[:-1][many]], counts[many]


def _each_once(values: U64) -> U64:
    values.sort()
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _runs(texts: Sequence[str], shared: U64, counts: I64) -> Iterator[tuple[int, int, int]]:
    """(position of the text, begin, end) of what each text has of a run, in whole words."""
    for first, piece in _pieces(texts):
        hashed, row, begins, inside = _windows(piece)
        at = np.searchsorted(shared, hashed).clip(max=len(shared) - 1)
        held = np.where(inside & (shared[at] == hashed), counts[at], 0)
        steps = np.zeros(len(held) + WINDOW, np.int64)
        kept = np.flatnonzero(_frequent(held))
        steps[kept] += 1
        steps[kept + WINDOW] -= 1
        for start, end in _stretches(np.cumsum(steps) > 0):
            k = int(row[start])
            yield first + k, *_whole_words(piece[k], start - int(begins[k]), end - int(begins[k]))


def _frequent(held: I64) -> npt.NDArray[np.bool_]:
    """The windows that at least half as many texts hold as the most frequent one of their run."""
    shared = np.flatnonzero(held)
    frequent = np.zeros(len(held), bool)
    if len(shared):
        starts = np.flatnonzero(np.concatenate([[True], np.diff(shared) > 1]))
        most = np.maximum.reduceat(held[shared], starts)
        frequent[shared] = 2 * held[shared] >= np.repeat(most, np.diff([*starts, len(shared)]))
    return frequent


def _stretches(marked: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """The place without the parts of words at its ends."""
    if start > 0 and text[start - 1] != " ":
        start = text.find(" ", start, start + _WORD) + 1 or start
    if end < len(text) and text[end] != " ":
        border = text.rfind(" ", end - _WORD, end)
        end = border if border >= 0 else end
    return start, end


def _pieces(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(position of the first, texts) in pieces of about a million characters."""
    first, room = 0, _PIECE_CHARS
    for number, text in enumerate(texts, 1):
        room -= len(text)
        if room <= 0 or number == len(texts):
            yield first, list(texts[first:number])
            first, room = number, _PIECE_CHARS


def _windows(piece: Sequence[str]) -> tuple[U64, I64, I64, npt.NDArray[np.bool_]]:
    """Every window of the joined texts: its hash (40 bits), the text it begins in, and whether it ends there; and where
    each text begins. Between two texts stands a character that is in no window which counts."""
    joined = "\n".join([*piece, "\0" * WINDOW])
    hashed = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    size = 1
    while size < WINDOW:  # of two windows next to each other, one of twice the size
        hashed = _mixed(hashed[:-size] * np.uint64(0x9E3779B97F4A7C15) + hashed[size:])
        size *= 2
    lengths = np.fromiter(map(len, piece), np.int64, len(piece))
    begins = np.cumsum(lengths + 1) - lengths - 1
    row = np.repeat(np.arange(len(piece)), lengths + 1)
    inside = np.arange(len(row)) + WINDOW <= (begins + lengths)[row]
    return hashed[: len(row)] >> _ROW_BITS, row, begins, inside


def _mixed(x: U64) -> U64:
    x = (x ^ (x >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return x ^ (x >> np.uint64(29))
