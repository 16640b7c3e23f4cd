"""Do test rows and training rows overlap? An exact check of the finished split that knows nothing of how it was made.

Four kinds, worst first: the same row, the same question (normalized), the same declared group, a near-duplicate
question. What is a near duplicate is defined once, in `clean/similarity.py`; here every such pair is found, not by
hashing as when the split is made.

    alike = alike_of([*test, *train], 0.6)
    overlaps(test, train, alike)    # [Overlap("near duplicate", test="9f1c…", other="77ab…", similarity=0.71)]

Every row that overlaps with the other side is named; of many equal ones not every pair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune_pipeline.clean.normalize import normalize
from finetune_pipeline.clean.similarity import Similarity, measure, star
from finetune_pipeline.records import Example

LEAST_LEFT = 16  # characters of its own by which a row is told from the others that share a passage: three words


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test row and a training row that must not both be there. `similarity` is the Jaccard similarity (1: equal)."""

    kind: str
    test: str
    other: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Alike:
    """How alike the rows of a collection are: their `similarity`, in which a row stands at the place of its id."""

    similarity: Similarity
    at: Mapping[str, int]


def alike_of(rows: Sequence[Example], threshold: float) -> Alike:
    """Measure what these rows ask. Always of all rows: what most of them share does not make two alike. Rows of one
    text that differ in a number or a name are kept together, unless so many rows share it that it is an instruction."""
    similarity = measure([asked(row) for row in rows], threshold, LEAST_LEFT)
    return Alike(similarity, {row.id: i for i, row in enumerate(rows)})


def asked(row: Example) -> str:
    """What the row asks, normalized: all that the user says, since a last turn alone ("yes, please") names nothing."""
    return normalize("\n".join(message.content for message in row.messages if message.role == "user"))


def overlaps(test: Sequence[Example], others: Sequence[Example], alike: Alike) -> list[Overlap]:
    """Overlaps of the two sides, each pair once with its worst kind, worst first."""
    found: dict[tuple[int, int], Overlap] = {}
    kinds = (
        ("same row", _equal([row.id for row in test], [row.id for row in others])),
        ("same question", _equal([asked(row) for row in test], [asked(row) for row in others])),
        ("same group", _equal([row.group for row in test], [row.group for row in others])),
        ("near duplicate", _near(test, others, alike)),
    )
    for kind, pairs in kinds:
        for i, j, similarity in pairs:
            found.setdefault((i, j), Overlap(kind, test[i].id, others[j].id, similarity))
    return list(found.values())


def _near(test: Sequence[Example], others: Sequence[Example], alike: Alike) -> Iterator[tuple[int, int, float]]:
    left, right = ({alike.at[row.id]: i for i, row in enumerate(rows)} for rows in (test, others))
    for a, b, similarity in alike.similarity.between(list(left), list(right)):
        yield left[a], right[b], similarity


def _equal(left: Sequence[str | None], right: Sequence[str | None]) -> Iterator[tuple[int, int, float]]:
    one, other = _by_key(left), _by_key(right)
    for key, places in one.items():
        if key in other:
            yield from star(places, other[key], 1.0)


def _by_key(keys: Sequence[str | None]) -> dict[str, list[int]]:
    at: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            at[key].append(i)
    return at
