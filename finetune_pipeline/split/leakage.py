"""Find overlaps between test rows and the rows that train: an exact check, independent of how the split was made.

    similarity = row_similarity([*test, *train], 0.6)
    overlaps(test, train, similarity)    # [Overlap("near duplicate", test="9f1c…", other="77ab…", similarity=0.71)]

Five kinds, worst first: the same row, the same prompt (normalized), the prompt as an earlier turn of a conversation
(the model learns to answer every turn), the same declared group, a near-duplicate prompt. Prompts alone decide:
completions and rejected completions may be equal.

Near duplicates are defined in `clean/similarity.py`; here every such pair is found, not by hashing as when the split is
made. Every row that overlaps is listed; of many equal rows not every pair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from finetune_pipeline.clean.normalize import normalize
from finetune_pipeline.clean.similarity import Similarity, measure, star
from finetune_pipeline.records import Example

LEAST_LEFT = 16  # characters beside a shared passage from which two rows can be told apart: three words


@dataclass(frozen=True, slots=True)
class Overlap:
    """A test row and a row that trains, which must not both be used. `similarity`: Jaccard similarity (1: equal)."""

    kind: str
    test: str
    other: str
    similarity: float


@dataclass(frozen=True, slots=True)
class RowSimilarity:
    """How similar the prompts of a collection of rows are: `texts`, and the position of each row in them, by id."""

    texts: Similarity
    position: Mapping[str, int]


def row_similarity(rows: Sequence[Example], threshold: float) -> RowSimilarity:
    """The similarity of these rows' prompts. It is always measured over all rows: text that most of them share does not
    make two similar. Rows of one text that differ in a number or a name count as near duplicates, unless so many rows
    share the text that it is an instruction."""
    similarity = measure([user_text(row) for row in rows], threshold, LEAST_LEFT)
    return RowSimilarity(similarity, {row.id: i for i, row in enumerate(rows)})


def user_text(row: Example) -> str:
    """All user messages of the row, normalized: the last one alone ("yes, please") may not identify the prompt."""
    return normalize("\n".join(message.content for message in row.messages if message.role == "user"))


def earlier_prompts(row: Example) -> list[str]:
    """What the user had said, normalized, before each answer of the assistant but the last: prompts that the row
    teaches to answer, too. Empty for a row of one turn."""
    said: list[str] = []
    prompts: list[str] = []
    for message in row.messages[:-1]:
        if message.role == "user":
            said.append(message.content)
        elif message.role == "assistant":
            prompts.append(normalize("\n".join(said)))
    return prompts


def shared_turns(rows: Sequence[Example]) -> list[list[int]]:
    """Pairs of indices: a row, and one whose conversation begins with the whole prompt of that row."""
    earlier = {i: prompts for i, row in enumerate(rows) if (prompts := earlier_prompts(row))}
    if not earlier:
        return []
    first = {prompt: indices[0] for prompt, indices in _indices_by_key([user_text(row) for row in rows]).items()}
    return [[first[prompt], i] for i, prompts in earlier.items() for prompt in prompts if first.get(prompt, i) != i]


def overlaps(test: Sequence[Example], others: Sequence[Example], similarity: RowSimilarity) -> list[Overlap]:
    """Overlaps between the two collections, each pair once with its worst kind, worst first."""
    found: dict[tuple[int, int], Overlap] = {}
    kinds = (
        ("same row", _equal([row.id for row in test], [row.id for row in others])),
        ("same prompt", _equal([user_text(row) for row in test], [user_text(row) for row in others])),
        ("earlier turn", _in_earlier_turn(test, others)),
        ("same group", _equal([row.group for row in test], [row.group for row in others])),
        ("near duplicate", _near(test, others, similarity)),
    )
    for kind, pairs in kinds:
        for i, j, jaccard in pairs:
            found.setdefault((i, j), Overlap(kind, test[i].id, others[j].id, jaccard))
    return list(found.values())


def _in_earlier_turn(test: Sequence[Example], others: Sequence[Example]) -> Iterator[tuple[int, int, float]]:
    prompts = _indices_by_key([user_text(row) for row in test])
    for j, other in enumerate(others):
        for prompt in earlier_prompts(other):
            yield from star(prompts[prompt], [j], 1.0) if prompt in prompts else ()


def _near(
    test: Sequence[Example], others: Sequence[Example], similarity: RowSimilarity
) -> Iterator[tuple[int, int, float]]:
    left, right = ({similarity.position[row.id]: i for i, row in enumerate(rows)} for rows in (test, others))
    for a, b, jaccard in similarity.texts.between(list(left), list(right)):
        yield left[a], right[b], jaccard


def _equal(left: Sequence[str | None], right: Sequence[str | None]) -> Iterator[tuple[int, int, float]]:
    by_left, by_right = _indices_by_key(left), _indices_by_key(right)
    for key, indices in by_left.items():
        if key in by_right:
            yield from star(indices, by_right[key], 1.0)


def _indices_by_key(keys: Sequence[str | None]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        if key is not None:
            indices[key].append(i)
    return indices
