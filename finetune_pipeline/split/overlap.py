"""Do test rows and training rows overlap? An exact check of the finished split that knows nothing of how it was made.

Four kinds, worst first: the same row, the same question (normalised), the same declared group, a near-duplicate
question. Near duplicates are found exactly, not by hashing: every pair whose Jaccard similarity of character 5-grams
reaches the threshold, by prefix filtering (Bayardo, Ma, Srikant, "Scaling up all pairs similarity search", WWW 2007):
two sets as similar as that share one of each one's rarest grams, so only such pairs are compared.

    overlaps(test, train, 0.6) -> [Overlap("near duplicate", test="9f1c…", other="77ab…", similarity=0.71)]

What it is not: the finder of clusters (`clean/near.py`), which this check has to be independent of.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.clean.normalise import normalise
from finetune_pipeline.records import Example

GRAM = 5
CHUNK = 4096  # rows of the left side compared at once: bounds memory, changes nothing


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test row and a training row that must not both be there. `similarity` is the Jaccard similarity (1: equal)."""

    kind: str
    test: str
    other: str
    similarity: float


def asked(row: Example) -> str:
    """What the row asks, normalised: all that the user says, since a last turn alone ("yes, please") names nothing."""
    return normalise("\n".join(message.content for message in row.messages if message.role == "user"))


def overlaps(test: Sequence[Example], others: Sequence[Example], threshold: float) -> list[Overlap]:
    """Every overlap of the two sides, each pair once with its worst kind, worst first."""
    texts, other_texts = [asked(row) for row in test], [asked(row) for row in others]
    found: dict[tuple[int, int], Overlap] = {}
    kinds = (
        ("same row", _equal([row.id for row in test], [row.id for row in others])),
        ("same question", _equal(texts, other_texts)),
        ("same group", _equal([row.group for row in test], [row.group for row in others])),
        ("near duplicate", near_pairs(texts, other_texts, threshold)),
    )
    for kind, pairs in kinds:
        for i, j, similarity in pairs:
            found.setdefault((i, j), Overlap(kind, test[i].id, others[j].id, similarity))
    return list(found.values())


def near_pairs(left: Sequence[str], right: Sequence[str], threshold: float) -> Iterator[tuple[int, int, float]]:
    """All (i, j, similarity) with similarity >= threshold, exactly. Texts are normalised already."""
    if not left or not right:
        return
    import numpy as np

    sets = _gram_sets([*left, *right])
    sizes = np.diff(sets.indptr)
    prefixes = _prefixes(sets, threshold)
    split = len(left)
    columns = prefixes[split:].T.tocsr()
    for start in range(0, split, CHUNK):
        candidates = (prefixes[start : min(start + CHUNK, split)] @ columns).tocoo()
        i, j = candidates.row + start, candidates.col + split
        for part in range(0, len(i), CHUNK * 16):
            a, b = i[part : part + CHUNK * 16], j[part : part + CHUNK * 16]
            shared = np.asarray(sets[a].multiply(sets[b]).sum(axis=1)).ravel()
            similarity = shared / (sizes[a] + sizes[b] - shared)
            for hit in np.flatnonzero(similarity >= threshold):
                yield int(a[hit]), int(b[hit]) - split, float(similarity[hit])


def grams(text: str) -> set[str]:
    """The character 5-grams of a text; a shorter text is its own only gram."""
    return {text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def _gram_sets(texts: Sequence[str]) -> Any:
    """CSR of 0 and 1: a row for each text, a column for each gram, columns from the rarest gram to the commonest."""
    import numpy as np
    from scipy.sparse import csr_array

    names: dict[str, int] = {}
    columns = array("q")
    ends = [0]
    for text in texts:
        columns.extend({names.setdefault(gram, len(names)) for gram in grams(text)})
        ends.append(len(columns))
    plain = np.frombuffer(columns, np.int64)
    rank = np.empty(len(names), np.int64)
    rank[np.argsort(np.bincount(plain), kind="stable")] = np.arange(len(names))
    sets = csr_array((np.ones(len(plain), np.int32), rank[plain], ends), shape=(len(texts), len(names)))
    sets.sort_indices()
    return sets


def _prefixes(sets: Any, threshold: float) -> Any:
    """Of each row only its n - ceil(threshold * n) + 1 rarest grams: those a similar row must share one of."""
    from scipy.sparse import csr_array

    keep: list[int] = []
    ends = [0]
    for start, end in zip(sets.indptr[:-1], sets.indptr[1:], strict=True):
        n = int(end - start)
        # the small number guards against 0.6 * 5 = 3.0000000000000004, which would make the prefix one too short
        kept = n - math.ceil(threshold * n - 1e-9) + 1 if threshold > 0 else n
        keep.extend(range(start, start + min(n, kept)))
        ends.append(len(keep))
    return csr_array((sets.data[keep], sets.indices[keep], ends), shape=sets.shape)


def _equal(left: Sequence[str | None], right: Sequence[str | None]) -> Iterator[tuple[int, int, float]]:
    at: dict[str, list[int]] = defaultdict(list)
    for j, key in enumerate(right):
        if key is not None:
            at[key].append(j)
    return ((i, j, 1.0) for i, key in enumerate(left) if key is not None for j in at.get(key, ()))
