"""Cuts passages that many texts share out of each: instructions, disclaimers, long parts of templates.

    without_passages([f"{instruction} {prompt}" for prompt in prompts])     # equal to prompts

A passage has 64 characters or more, begins and ends with whole words, and occurs in many different texts: 50 (half of
them where there are fewer than 100; 0.2 % where there are more than 25,000). It is cut by position, so that words which
an instruction and a prompt have in common are kept in the prompt.

1. Every window of 64 characters is hashed, and counted once a text. Consecutive windows that half as many texts have
   are a run. Of a run only those windows are used that at least half as many texts have as its most frequent one: an
   instruction ends where the texts continue differently, though many of them continue with "how do I".
2. The part of a run that a text has is cut if many texts have exactly the same part. Variants of one long text, each
   changed in another position, share windows but no such passage, and are kept whole: they are duplicates. Variants
   that all differ in the same position (a number at the end) cannot be distinguished from an instruction, and are
   cut. Where similar rows must not be separated by mistake (the split), `least_left` requires more: if fewer than 5 %
   of the texts have the passage, so many characters have to be left besides the passage, or the text is kept whole.

Both steps are repeated until no passage is found, since a passage that all texts share may be followed by one that
some share. Windows are counted in at most 16 million characters, of texts sampled by their hashes; passages in all
texts.
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finetune_pipeline.clean.shingles import I64, U64, mix64, sorted_unique

WINDOW = 64  # characters; a power of two
# A passage is in at least MANY texts and at least this SHARE of them; in half of the texts where that is less.
MANY, SHARE = 50, 0.002
USUAL = 0.05  # share of the texts from which a passage is cut whatever else is left
MIN_TEXTS = 20  # with fewer texts, what they share is not significant
_SAMPLE_CHARS = 1 << 24
_CHUNK_CHARS = 1 << 20
_WORD = 24  # characters within which the end of a word is searched; some languages have no spaces
_ROUNDS = 6
_ROW_BITS = np.uint64(24)  # of a key; the other 40 are the window's hash
Span: TypeAlias = tuple[int, int]  # start and end of a part of a text, in characters


def without_passages(texts: Sequence[str], least_left: int = 1) -> list[str]:
    """The texts without the passages that many of them share. A text that consists of the passage is kept whole, and so
    is one of which fewer than `least_left` characters would be left, if fewer than 5 % of the texts have the passage.
    The texts have to be normalized (single spaces) and distinct: repeated texts would count as passages."""
    left = list(texts)
    for _ in range(_ROUNDS if len(texts) >= MIN_TEXTS else 0):
        passages = _find(left, least_left)
        for row, spans in passages.items():
            left[row] = _cut(left[row], spans)
        if not passages:
            break
    return left


def _min_texts_of_passage(texts: int) -> float:
    return max(SHARE * texts, min(MANY, texts / 2))


def _find(texts: Sequence[str], least_left: int) -> dict[int, list[Span]]:
    """The spans of passages, in order, by the index of the text; none that is the whole text."""
    sample = _sample(texts)
    least = _min_texts_of_passage(len(texts))
    shared, counts = _shared_windows(sample, least / 2 * len(sample) / len(texts))
    if not len(shared):
        return {}
    numbers: dict[str, int] = {}
    spans = [
        (row, start, end, numbers.setdefault(texts[row][start:end], len(numbers)))
        for row, start, end in _runs(texts, shared, counts)
        if WINDOW <= end - start < len(texts[row])
    ]
    text_counts = Counter(number for number, _ in {(number, row) for row, _, _, number in spans})
    frequent, usual = defaultdict[int, list[Span]](list), defaultdict[int, list[Span]](list)
    for row, start, end, number in spans:
        if text_counts[number] >= least:
            frequent[row].append((start, end))
        if text_counts[number] >= max(least, USUAL * len(texts)):
            usual[row].append((start, end))
    for row in [row for row in frequent if len(_cut(texts[row], frequent[row])) < least_left]:
        frequent[row] = usual[row]
    return {row: cut for row, cut in frequent.items() if cut}


def _cut(text: str, spans: Sequence[Span]) -> str:
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    parts = (text[end:start].strip() for end, start in zip(ends, starts, strict=True))
    return " ".join(part for part in parts if part) or text


def _sample(texts: Sequence[str]) -> list[str]:
    """Texts of _SAMPLE_CHARS together; which ones does not depend on their order."""
    if sum(map(len, texts)) <= _SAMPLE_CHARS:
        return list(texts)
    sample: list[str] = []
    room = _SAMPLE_CHARS
    for _, text in sorted((zlib.crc32(text.encode("utf-8", "surrogatepass")), text) for text in texts):
        sample.append(text)
        room -= len(text)
        if room <= 0:
            break
    return sample


def _shared_windows(texts: Sequence[str], least: float) -> tuple[U64, I64]:
    """(hashes, sorted, of the windows that `least` of these texts have, two at least; how many texts have each)."""
    keys = [np.zeros(0, np.uint64)]
    for first, chunk in _chunks(texts):
        hashed, row, _, inside = _windows(chunk)
        keys.append((hashed[inside] << _ROW_BITS) | (row[inside] + first).astype(np.uint64))
    once = sorted_unique(np.concatenate(keys)) >> _ROW_BITS
    edges = np.flatnonzero(np.concatenate([[True], once[1:] != once[:-1], [True]])) if len(once) else np.zeros(1, int)
    counts = np.diff(edges)
    many = counts >= max(2.0, least)
    return once[edges[:-1][many]], counts[many]


def _runs(texts: Sequence[str], shared: U64, counts: I64) -> Iterator[tuple[int, int, int]]:
    """(index of the text, start, end) of the part of a run that each text has, in whole words."""
    for first, chunk in _chunks(texts):
        hashed, row, begins, inside = _windows(chunk)
        at = np.searchsorted(shared, hashed).clip(max=len(shared) - 1)
        counts_at = np.where(inside & (shared[at] == hashed), counts[at], 0)
        steps = np.zeros(len(counts_at) + WINDOW, np.int64)
        kept = np.flatnonzero(_frequent(counts_at))
        steps[kept] += 1
        steps[kept + WINDOW] -= 1
        for start, end in _true_spans(np.cumsum(steps) > 0):
            k = int(row[start])
            yield first + k, *_whole_words(chunk[k], start - int(begins[k]), end - int(begins[k]))


def _frequent(counts: I64) -> npt.NDArray[np.bool_]:
    """The windows that at least half as many texts have as the most frequent one of their run: [windows] of bool."""
    shared = np.flatnonzero(counts)
    frequent = np.zeros(len(counts), bool)
    if len(shared):
        starts = np.flatnonzero(np.concatenate([[True], np.diff(shared) > 1]))
        most = np.maximum.reduceat(counts[shared], starts)
        frequent[shared] = 2 * counts[shared] >= np.repeat(most, np.diff([*starts, len(shared)]))
    return frequent


def _true_spans(marked: npt.NDArray[np.bool_]) -> Iterator[Span]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _whole_words(text: str, start: int, end: int) -> Span:
    """The span without the parts of words at its ends."""
    if start > 0 and text[start - 1] != " ":
        start = text.find(" ", start, start + _WORD) + 1 or start
    if end < len(text) and text[end] != " ":
        border = text.rfind(" ", end - _WORD, end)
        end = border if border >= 0 else end
    return start, end


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """(index of the first, texts) in chunks of about a million characters."""
    first, room = 0, _CHUNK_CHARS
    for number, text in enumerate(texts, 1):
        room -= len(text)
        if room <= 0 or number == len(texts):
            yield first, list(texts[first:number])
            first, room = number, _CHUNK_CHARS


def _windows(chunk: Sequence[str]) -> tuple[U64, I64, I64, npt.NDArray[np.bool_]]:
    """(hash of every window of the concatenated texts, 40 bits; the text in which it begins; where each text begins;
    whether the window ends in the same text). A separator between texts keeps windows across texts apart."""
    joined = "\n".join([*chunk, "\0" * WINDOW])
    hashed = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    size = 1
    while size < WINDOW:  # two adjacent windows are one of twice the size
        hashed = mix64(hashed[:-size] * np.uint64(0x9E3779B97F4A7C15) + hashed[size:])
        size *= 2
    lengths = np.fromiter(map(len, chunk), np.int64, len(chunk))
    begins = np.cumsum(lengths + 1) - lengths - 1
    row = np.repeat(np.arange(len(chunk)), lengths + 1)
    inside = np.arange(len(row)) + WINDOW <= (begins + lengths)[row]
    return hashed[: len(row)] >> _ROW_BITS, row, begins, inside
