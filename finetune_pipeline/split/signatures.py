"""Compare prompts by MinHash signatures, from which no text can be read.

    prompts = sign(rows, similarity)                       # of 2 rows; uint8 [2, 126] each
    encode(prompts.full)                                   # ["kPO1…", "9aXc…"], base64
    similar_pairs(prompts.full, decode(["kPO1…"]), np.full(2, 0.6), 0.6)      # [(0, 0)]

A signature is 126 hashes of 8 bits (Li and König, "b-Bit Minwise Hashing", WWW 2010). Each prompt has two: one of the
text without the passages that many rows share, and one of the full text. The similarity estimated from two signatures
has a standard error of 0.04.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from finetune_pipeline.clean.minhash import HASHES, band_keys, bands_for, signatures
from finetune_pipeline.clean.shingles import Grams, grams_of, take_rows
from finetune_pipeline.records import Example
from finetune_pipeline.split.leakage import RowSimilarity, user_text

MARGIN = 0.08  # two standard errors of the estimated similarity: one in 40 pairs just at the threshold is missed
CHANCE = 1 / 256  # how often two different hashes have the same lowest 8 bits
_SAME_KEY = 64  # signatures with one key that a row is compared with, in each band

Signatures: TypeAlias = npt.NDArray[np.uint8]  # [rows, HASHES]


@dataclass(frozen=True, slots=True)
class PromptSignatures:
    """Two signatures per row, [rows, HASHES]: without the passages that many rows share, and of the full prompt.
    `required`: the similarity from which each row counts as a near duplicate, without shared passages; [rows]."""

    distinctive: Signatures
    full: Signatures
    required: npt.NDArray[np.float64]


def sign(rows: Sequence[Example], similarity: RowSimilarity) -> PromptSignatures:
    """The signatures of these rows, which `similarity` covers."""
    places = similarity.texts.at[[similarity.position[row.id] for row in rows]]
    distinctive = _lowest_bits(take_rows(places, similarity.texts.grams))
    full = _lowest_bits(grams_of([user_text(row) for row in rows]))
    return PromptSignatures(distinctive, full, similarity.texts.least[places])


def _lowest_bits(grams: Grams) -> Signatures:
    return (signatures(grams) & np.uint32(0xFF)).astype(np.uint8)


def encode(signed: Signatures) -> list[str]:
    """Base64, a string per row."""
    return [base64.b64encode(row.tobytes()).decode() for row in signed]


def decode(encoded: Sequence[str]) -> Signatures:
    """The inverse of `encode`."""
    return np.stack([np.frombuffer(base64.b64decode(text), np.uint8) for text in encoded])


def check_encoded(encoded: str) -> None:
    """ValueError unless this is a signature in base64."""
    if len(base64.b64decode(encoded, validate=True)) != HASHES:
        raise ValueError(f"a signature is {HASHES} bytes")


def similar_pairs(
    left: Signatures,
    right: Signatures,
    required: npt.NDArray[np.float64],
    threshold: float,
    fewer_than: int | None = None,
) -> list[tuple[int, int]]:
    """Pairs (row of left, row of right) whose estimated similarity reaches what the left row requires, less MARGIN;
    sorted. Rows of right that match `fewer_than` rows of left or more are left out."""
    limit = len(left) + 1 if fewer_than is None else fewer_than
    found: set[tuple[int, int]] = set()
    crowded: set[int] = set()
    for i, j in _sharing_a_band(left, right, *bands_for(threshold)):
        estimate = ((left[i] == right[j]).mean(axis=1) - CHANCE) / (1 - CHANCE)
        hit = estimate >= required[i] - MARGIN
        many = np.bincount(j[hit], minlength=len(right)) >= limit  # a pair comes once per chunk
        crowded.update(np.flatnonzero(many).tolist())
        hit &= ~many[j]
        found.update(zip(i[hit].tolist(), j[hit].tolist(), strict=True))
    matches = Counter(j for _, j in found)
    return sorted((i, j) for i, j in found if j not in crowded and matches[j] < limit)


def _sharing_a_band(
    left: Signatures, right: Signatures, bands: int, width: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Indices (left, right) of signatures that are equal in a band, in chunks."""
    for start in range(0, bands * width, width):
        keys, wanted = band_keys(right[:, start : start + width]), band_keys(left[:, start : start + width])
        order = np.argsort(keys, kind="stable")
        first = np.searchsorted(keys[order], wanted)
        for step in range(_SAME_KEY):
            at = (first + step).clip(max=len(order) - 1)
            same = np.flatnonzero((keys[order[at]] == wanted) & (first + step < len(order)))
            if not len(same):
                break
            yield same, order[at[same]]
