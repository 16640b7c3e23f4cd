"""Rows that say the same twice, and rows that contradict each other.

exact-duplicate   the same question (after normalise.py) with the same answer: the first in order of input stays
contradiction     the same question with different answers: all of them go, since nobody knows which is right. Of
                  questions that are only nearly the same, only if the difference means nothing (a letter, "please"):
                  "cancel HV-48213" and "cancel HV-48214" are two questions, however alike they look
near-duplicate    nearly the same question with the same answer: the first in order of input stays

In this order: a contradiction is evidence that no later rule may remove. Pure: values in, records out. What it is not:
the search for near texts (near.py).
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from finetune_pipeline.clean.near import pairs
from finetune_pipeline.clean.normalise import normalise
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Drop, Example

STAGE = "clean"
_SPELLING = 0.8  # SequenceMatcher's ratio from which two words are one, misspelt
# Words whose presence changes no answer. Neither negations nor directions (to, from, without) are among them.
_LIGHT = frozenset((
    "a", "am", "an", "and", "are", "been", "hello", "hey", "hi", "i", "im", "is", "it", "its", "ive", "just", "me",
    "my", "now", "of", "oh", "ok", "okay", "our", "please", "pls", "plz", "really", "so", "still", "thank", "thanks",
    "that", "the", "their", "there", "these", "this", "those", "thx", "u", "ur", "we", "yet", "you", "your",
))  # fmt: skip


@dataclass(frozen=True)
class Duplicates:
    """What was found: the rows that stay, the drops, and a line for each duplicate of a kept row (clusters.jsonl:
    {"kept": id, "dropped": id, "similarity": 0.93})."""

    kept: tuple[Example, ...]
    drops: tuple[Drop, ...]
    clusters: tuple[dict[str, str | float], ...]


@dataclass(frozen=True, slots=True)
class _Said:
    """One row, with what makes two rows the same question, and the same answer."""

    row: Example
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class _Twin:
    """`dropped` repeats `kept`, which comes before it."""

    kept: Example
    dropped: Example
    similarity: float = 1.0

    def drop(self, reason: str) -> Drop:
        shown = "" if self.similarity == 1 else f", similarity {self.similarity:.2f}"
        detail = f"of {self.kept.id} ({self.kept.origin}){shown}"
        return Drop(self.dropped.id, self.dropped.origin, STAGE, reason, detail)

    def line(self) -> dict[str, str | float]:
        return {"kept": self.kept.id, "dropped": self.dropped.id, "similarity": round(self.similarity, 4)}


def without_duplicates(rows: Sequence[Example], rules: Clean, answer: AnswerFormat) -> Duplicates:
    """Drop exact duplicates, contradictions (where declared), and near duplicates. The order of rows stays."""
    said = [_Said(row, question_of(row), _answer_of(row, answer)) for row in rows]
    exact = _exact(said)
    repeated = {twin.dropped.id for twin in exact}
    said = [one for one in said if one.row.id not in repeated]
    near = pairs([one.question for one in said], rules.near_duplicate)
    against = _against(said, near, answer) if rules.contradictions == "drop" else {}
    alike = _alike(said, [pair for pair in near if pair[0] not in against and pair[1] not in against])
    drops = [twin.drop("exact-duplicate") for twin in exact]
    drops += [_contradiction(said[i].row, [said[j].row.id for j in sorted(others)]) for i, others in against.items()]
    drops += [twin.drop("near-duplicate") for twin in alike]
    gone = {drop.id for drop in drops}
    kept = tuple(one.row for one in said if one.row.id not in gone)
    return Duplicates(kept, tuple(drops), tuple(twin.line() for twin in (*exact, *alike)))


def question_of(row: Example) -> str:
    """All that comes before the answer, normalised: what makes two rows the same question."""
    messages = row.messages[:-1] if row.answer_is_last else row.messages
    return " ".join(normalise(m.content) for m in messages)


def _answer_of(row: Example, answer: AnswerFormat) -> str:
    """Answers are the same when they are read the same: free text without regard to case and punctuation."""
    return normalise(row.answer) if answer.format == "text" else row.answer


def _exact(said: Iterable[_Said]) -> list[_Twin]:
    first: dict[tuple[str, str], _Said] = {}
    firsts = ((first.setdefault((one.question, one.answer), one), one) for one in said)
    return [_Twin(kept.row, one.row) for kept, one in firsts if kept is not one]


def _against(
    said: Sequence[_Said], near: Iterable[tuple[int, int, float]], answer: AnswerFormat
) -> dict[int, set[int]]:
    """Rows that contradict others, by index. Free text may say one thing in many words: there only the very same
    question counts."""
    same: Callable[[str, str], bool] = same_question if answer.format != "text" else str.__eq__
    against: dict[int, set[int]] = defaultdict(set)
    for i, j, _ in near:
        if said[i].answer != said[j].answer and same(said[i].question, said[j].question):
            against[i].add(j)
            against[j].add(i)
    return against


def _contradiction(row: Example, others: Sequence[str]) -> Drop:
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    detail = f"the same question has another answer in {', '.join(others[:3])}{more}"
    return Drop(row.id, row.origin, STAGE, "contradiction", detail)


def _alike(said: Sequence[_Said], near: Iterable[tuple[int, int, float]]) -> list[_Twin]:
    """A row goes if a row before it stays, is near, and says the same. No chains: what only resembles a row that goes
    stays."""
    found: dict[int, _Twin] = {}
    for i, j, similarity in sorted(near, key=lambda pair: (pair[1], -pair[2], pair[0])):
        if i not in found and j not in found and said[i].answer == said[j].answer:
            found[j] = _Twin(said[i].row, said[j].row, similarity)
    return list(found.values())


def same_question(one: str, other: str) -> bool:
    """Whether two normalised questions differ in nothing that could change the answer: light words and spelling."""
    left, right = ([word for word in text.split() if word not in _LIGHT] for text in (one, other))
    return len(left) == len(right) and all(a == b or _misspelt(a, b) for a, b in zip(left, right, strict=True))


def _misspelt(one: str, other: str) -> bool:
    """One word, spelled in two ways. Numbers have no spelling, and a first letter is often a prefix (lock, unlock)."""
    alike = one.isalpha() and other.isalpha() and one[0] == other[0]
    return alike and difflib.SequenceMatcher(None, one, other).ratio() >= _SPELLING
