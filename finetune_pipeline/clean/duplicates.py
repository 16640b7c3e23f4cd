"""Drops duplicate rows and rows that contradict each other.

exact-duplicate   the identical prompt with the identical completion: the first in order of input is kept. Identical
                  means every character (normalize.py): "polish" and "Polish" are two prompts
contradiction     the identical prompt with different completions: all of them are dropped, since none is known to be
                  right. Not where answers are free text: there a prompt may have several good completions, and only
                  preferences that reverse each other are dropped (contradictions.py)
near-duplicate    a nearly identical prompt with the same completion: the first in order of input is kept. The same text
                  under another instruction is another prompt

A prompt that is nearly identical and has another completion may be right, and is kept ("40 C" and "-40 C"). Where the
two differ in nothing but case, punctuation, light words ("please") or spelling, they are a conflict, which is shown to
the reviewers.

The order is as above: a contradiction is evidence that no later rule may remove. Of duplicates, one with a rejected
completion is kept before one without; of several that differ in nothing but that one, the first, since each would teach
the same completion again. How alike two texts are is defined in similarity.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from finetune_pipeline.clean.contradictions import STAGE, contradictions, same_prompt_groups
from finetune_pipeline.clean.normalize import identity, normalize
from finetune_pipeline.clean.similarity import measure, resemblance
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Drop, Example

_SPELLING = 0.8  # SequenceMatcher's ratio from which two words are one, misspelled
# Words that change no completion. Neither negations nor directions (to, from, without) are among them.
_LIGHT = frozenset((
    "a", "am", "an", "and", "are", "been", "hello", "hey", "hi", "i", "im", "is", "it", "its", "ive", "just", "me",
    "my", "now", "of", "oh", "ok", "okay", "our", "please", "pls", "plz", "really", "so", "still", "thank", "thanks",
    "that", "the", "their", "there", "these", "this", "those", "thx", "u", "ur", "we", "yet", "you", "your",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """A line of duplicates.jsonl: the ids of a kept row and of its dropped duplicate, and their similarity (0 to 1)."""

    kept: str
    dropped: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Conflict:
    """A line of conflicts.jsonl: ids and origins of two kept rows, and their similarity (0 to 1)."""

    rows: tuple[str, str]
    origins: tuple[str, str]
    similarity: float


@dataclass(frozen=True, slots=True)
class SeveralCompletions:
    """How many prompts have several completions that are all kept, and in how many rows."""

    prompts: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class SimilarityFigures:
    """What the comparison left out (similarity.py): the share of 5-grams that many rows share (0 to 1), and how many
    rows need a higher similarity since they come from a template."""

    ignored_grams: float = 0.0
    template_rows: int = 0


@dataclass(frozen=True)
class Duplicates:
    """The kept rows, in order of input; the drops; the pairs of duplicates; the conflicts among the kept rows, the most
    alike first; and figures."""

    kept: tuple[Example, ...]
    drops: tuple[Drop, ...]
    pairs: tuple[DuplicatePair, ...]
    conflicts: tuple[Conflict, ...]
    several_completions: SeveralCompletions
    similarity: SimilarityFigures


@dataclass(frozen=True, slots=True)
class _Row:
    """An example, with the texts that two identical prompts, or two identical completions, have in common, and its
    `prompt_text`."""

    example: Example
    prompt: str
    completion: str
    text: str


@dataclass(frozen=True, slots=True)
class _Duplicate:
    """`dropped` repeats `kept`, which comes before it."""

    kept: Example
    dropped: Example
    similarity: float = 1.0

    def drop(self, reason: str) -> Drop:
        shown = "" if self.similarity == 1 else f", similarity {self.similarity:.2f}"
        other = ", with another rejected completion" if self.dropped.rejected not in (None, self.kept.rejected) else ""
        detail = f"of {self.kept.id} ({self.kept.origin}){shown}{other}"
        return Drop(self.dropped.id, self.dropped.origin, STAGE, reason, detail)

    def pair(self) -> DuplicatePair:
        return DuplicatePair(self.kept.id, self.dropped.id, round(self.similarity, 4))


def without_duplicates(examples: Sequence[Example], rules: Clean, answer: AnswerFormat) -> Duplicates:
    """Drop exact duplicates, contradictions (where declared), and near duplicates."""
    ordered = sorted(examples, key=lambda row: row.rejected is None)
    rows = [_Row(row, _prompt_identity(row), identity(row.completion), prompt_text(row)) for row in ordered]
    exact = _exact_duplicates(rows)
    rows = _without(rows, {duplicate.dropped.id for duplicate in exact})
    may_differ = several_completions(rules, answer)
    prompts = [(row.prompt, row.example) for row in rows]
    contradicting = contradictions(prompts, may_differ) if rules.contradictions == "drop" else []
    rows = _without(rows, {drop.id for drop in contradicting})
    kept_groups = same_prompt_groups([(row.prompt, row.example) for row in rows]) if may_differ else []
    equal = _equal_texts(rows) if rules.near_duplicate_threshold < 1 else []
    rows = _without(rows, {duplicate.dropped.id for duplicate in equal})
    similarity = measure([row.text for row in rows], rules.near_duplicate_threshold)
    near_pairs = list(similarity.pairs())
    similar = _near_duplicates(rows, near_pairs, rules.near_duplicate_threshold)
    dropped, near = {duplicate.dropped.id for duplicate in similar}, [*_of_kept_rows(equal, similar), *similar]
    conflicts = [] if may_differ else _conflicts(rows, near_pairs, dropped)
    kept = {row.example.id for row in _without(rows, dropped)}
    return Duplicates(
        tuple(row for row in examples if row.id in kept),
        (
            *(duplicate.drop("exact-duplicate") for duplicate in exact),
            *contradicting,
            *(duplicate.drop("near-duplicate") for duplicate in near),
        ),
        tuple(duplicate.pair() for duplicate in (*exact, *near)),
        tuple(conflicts),
        SeveralCompletions(len(kept_groups), sum(map(len, kept_groups))),
        SimilarityFigures(similarity.ignored, sum(similarity.raised().values())),
    )


def several_completions(rules: Clean, answer: AnswerFormat) -> bool:
    """Whether one prompt may have several completions: where that is declared, and in free text."""
    return rules.contradictions == "keep" or answer.format == "text"


def prompt_text(row: Example) -> str:
    """All messages before the completion, normalized, as they are compared with those of other rows."""
    return " ".join(normalize(m.content) for m in row.prompt_messages)


def _prompt_identity(row: Example) -> str:
    return "\n".join(f"{m.role}: {identity(m.content)}" for m in row.prompt_messages)


def _without(rows: Sequence[_Row], ids: set[str]) -> list[_Row]:
    return [row for row in rows if row.example.id not in ids]


def _exact_duplicates(rows: Iterable[_Row]) -> list[_Duplicate]:
    return _repeats(rows, lambda row: row.prompt)


def _equal_texts(rows: Iterable[_Row]) -> list[_Duplicate]:
    """Rows whose normalized prompt and whose completion are those of an earlier row. Of many equal texts, not every
    pair is among `Similarity.pairs`."""
    return _repeats(rows, lambda row: row.text)


def _of_kept_rows(equal: Iterable[_Duplicate], similar: Iterable[_Duplicate]) -> list[_Duplicate]:
    """The duplicates of `equal`: those of a row that is itself in `similar` are duplicates of the row that is kept."""
    kept = {duplicate.dropped.id: duplicate for duplicate in similar}
    return [replace(kept.get(each.kept.id, each), dropped=each.dropped) for each in equal]


def _repeats(rows: Iterable[_Row], prompt: Callable[[_Row], str]) -> list[_Duplicate]:
    first: dict[tuple[str, str], _Row] = {}
    pairs = ((first.setdefault((prompt(row), row.completion), row), row) for row in rows)
    return [_Duplicate(kept.example, row.example) for kept, row in pairs if kept is not row]


def _conflicts(rows: Sequence[_Row], near_pairs: Iterable[tuple[int, int, float]], dropped: set[str]) -> list[Conflict]:
    """Pairs of kept rows whose prompts differ in nothing that should matter and whose completions differ."""
    conflicts: list[Conflict] = []
    for i, j, similarity in sorted(near_pairs, key=lambda pair: (-pair[2], pair[0], pair[1])):
        left, right = rows[i].example, rows[j].example
        if rows[i].completion == rows[j].completion or {left.id, right.id} & dropped:
            continue
        if same_prompt(rows[i].text, rows[j].text):
            conflicts.append(Conflict((left.id, right.id), (left.origin, right.origin), round(similarity, 4)))
    return conflicts


def _near_duplicates(
    rows: Sequence[_Row], near_pairs: Iterable[tuple[int, int, float]], threshold: float
) -> list[_Duplicate]:
    """A row is dropped if a kept row before it is near (also as a whole text) and has the same completion. No chains:
    a row that is near a dropped row only is kept."""
    if threshold >= 1:
        return []
    duplicates: dict[int, _Duplicate] = {}
    for i, j, similarity in sorted(near_pairs, key=lambda pair: (pair[1], -pair[2], pair[0])):
        left, right = rows[i], rows[j]
        if i in duplicates or j in duplicates or left.completion != right.completion:
            continue
        if resemblance(left.text, right.text) >= threshold:
            duplicates[j] = _Duplicate(left.example, right.example, similarity)
    return list(duplicates.values())


def same_prompt(left: str, right: str) -> bool:
    """Whether two normalized prompts differ in nothing that could change the completion: light words and spelling."""
    words, others = ([word for word in text.split() if word not in _LIGHT] for text in (left, right))
    return len(words) == len(others) and all(a == b or _misspelled(a, b) for a, b in zip(words, others, strict=True))


def _misspelled(left: str, right: str) -> bool:
    """One word in two spellings. Numbers have no spelling, and a first letter is often a prefix (lock, unlock)."""
    comparable = left.isalpha() and right.isalpha() and left[0] == right[0]
    return comparable and difflib.SequenceMatcher(None, left, right).ratio() >= _SPELLING
