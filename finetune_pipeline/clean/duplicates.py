"""Rows that say the same twice, and rows that contradict each other.

exact-duplicate   the identical question with the identical answer: the first in order of input stays. Identical means
                  every character (normalize.py): "polish" and "Polish" are two questions
contradiction     the identical question with different answers: all of them go, since nobody knows which is right.
                  Not where answers are free text: there one question may have several good answers
near-duplicate    nearly the same question with the same answer: the first in order of input stays. Under another
                  instruction the same text is another question

A question that is nearly the same and has another answer may be right, and stays ("40 C" and "-40 C"). Where the two
differ in nothing but case, punctuation, light words ("please") or spelling, they are a conflict, for people to look at.

In this order: a contradiction is evidence that no later rule may remove. Pure: values in, records out. What it is not:
how alike two texts are (similarity.py).
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from finetune_pipeline.clean.normalize import identity, normalize
from finetune_pipeline.clean.similarity import measure, resemblance
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Drop, Example, Json, Message

STAGE = "clean"
_SPELLING = 0.8  # SequenceMatcher's ratio from which two words are one, misspelled
# Words whose presence changes no answer. Neither negations nor directions (to, from, without) are among them.
_LIGHT = frozenset((
    "a", "am", "an", "and", "are", "been", "hello", "hey", "hi", "i", "im", "is", "it", "its", "ive", "just", "me",
    "my", "now", "of", "oh", "ok", "okay", "our", "please", "pls", "plz", "really", "so", "still", "thank", "thanks",
    "that", "the", "their", "there", "these", "this", "those", "thx", "u", "ur", "we", "yet", "you", "your",
))  # fmt: skip


@dataclass(frozen=True)
class Duplicates:
    """What was found: the rows that stay, the drops, and a line for each duplicate of a kept row (clusters.jsonl:
    {"kept": id, "dropped": id, "similarity": 0.93}); `conflicts` among the kept rows (conflicts.jsonl: {"rows": [id,
    id], "origins": [..], "similarity": 0.97}), the most alike first; how many questions have `several_answers`, and in
    how many rows; and what the similarity left out of account (see similarity.py)."""

    kept: tuple[Example, ...]
    drops: tuple[Drop, ...]
    clusters: tuple[dict[str, str | float], ...]
    conflicts: tuple[dict[str, Json], ...] = ()
    several_answers: tuple[int, int] = (0, 0)
    ignored_grams: float = 0.0
    rows_of_templates: int = 0


@dataclass(frozen=True, slots=True)
class _Said:
    """One row, with what makes two rows the identical question, and the identical answer."""

    row: Example
    prompt: str
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
    said = [_Said(row, _prompt_identity(row), identity(row.completion)) for row in rows]
    exact = _exact(said)
    repeated = {twin.dropped.id for twin in exact}
    said = [one for one in said if one.row.id not in repeated]
    several = _several_answers(said)
    may_differ = answer.format == "text" or rules.contradictions == "keep"
    against = [] if may_differ else several
    drops = [twin.drop("exact-duplicate") for twin in exact]
    drops += [drop for group in against for drop in _contradictions(group)]
    gone = {drop.id for drop in drops}
    said = [one for one in said if one.row.id not in gone]
    similarity = measure([prompt_text(one.row) for one in said], rules.near_duplicate_threshold)
    near = list(similarity.pairs())
    alike = _alike(said, near, rules.near_duplicate_threshold) if rules.near_duplicate_threshold < 1 else []
    drops += [twin.drop("near-duplicate") for twin in alike]
    gone = {drop.id for drop in drops}
    conflicts = [] if may_differ else _conflicts(said, near, gone)
    stay = several if may_differ else []
    return Duplicates(
        tuple(one.row for one in said if one.row.id not in gone),
        tuple(drops),
        tuple(twin.line() for twin in (*exact, *alike)),
        tuple(conflicts),
        (len(stay), sum(map(len, stay))),
        similarity.ignored,
        sum(similarity.raised().values()),
    )


def prompt_text(row: Example) -> str:
    """All that comes before the answer, as it is compared with other rows."""
    return " ".join(normalize(m.content) for m in _before_completion(row))


def _prompt_identity(row: Example) -> str:
    return "\n".join(f"{m.role}: {identity(m.content)}" for m in _before_completion(row))


def _before_completion(row: Example) -> tuple[Message, ...]:
    return row.messages[:-1] if row.ends_with_completion else row.messages


def _exact(said: Iterable[_Said]) -> list[_Twin]:
    first: dict[tuple[str, str], _Said] = {}
    firsts = ((first.setdefault((one.prompt, one.answer), one), one) for one in said)
    return [_Twin(kept.row, one.row) for kept, one in firsts if kept is not one]


def _several_answers(said: Iterable[_Said]) -> list[list[_Said]]:
    """The rows of each question that is asked more than once; without exact duplicates their answers all differ."""
    asked: dict[str, list[_Said]] = defaultdict(list)
    for one in said:
        asked[one.prompt].append(one)
    return [group for group in asked.values() if len(group) > 1]


def _contradictions(group: Sequence[_Said]) -> Iterator[Drop]:
    for one in group:
        named = [other.row.id for other in group[:4] if other is not one][:3]
        more = f" and {len(group) - 1 - len(named)} more" if len(group) - 1 > len(named) else ""
        detail = f"the same question has another answer in {', '.join(named)}{more}"
        yield Drop(one.row.id, one.row.origin, STAGE, "contradiction", detail)


def _conflicts(said: Sequence[_Said], near: Iterable[tuple[int, int, float]], gone: set[str]) -> list[dict[str, Json]]:
    """Pairs of rows that stay, whose questions differ in nothing that should matter and whose answers do."""
    found: list[dict[str, Json]] = []
    for i, j, similarity in sorted(near, key=lambda pair: (-pair[2], pair[0], pair[1])):
        one, other = said[i], said[j]
        if one.answer == other.answer or {one.row.id, other.row.id} & gone:
            continue
        if same_prompt(prompt_text(one.row), prompt_text(other.row)):
            rows, origins = [one.row.id, other.row.id], [one.row.origin, other.row.origin]
            found.append({"rows": rows, "origins": origins, "similarity": round(similarity, 4)})
    return found


def _alike(said: Sequence[_Said], near: Iterable[tuple[int, int, float]], threshold: float) -> list[_Twin]:
    """A row goes if a row before it stays, is near (also with all that many rows share), and says the same. No chains:
    what only resembles a row that goes stays."""
    found: dict[int, _Twin] = {}
    for i, j, similarity in sorted(near, key=lambda pair: (pair[1], -pair[2], pair[0])):
        same = i not in found and j not in found and said[i].answer == said[j].answer
        if same and resemblance(prompt_text(said[i].row), prompt_text(said[j].row)) >= threshold:
            found[j] = _Twin(said[i].row, said[j].row, similarity)
    return list(found.values())


def same_prompt(one: str, other: str) -> bool:
    """Whether two normalized questions differ in nothing that could change the answer: light words and spelling."""
    left, right = ([word for word in text.split() if word not in _LIGHT] for text in (one, other))
    return len(left) == len(right) and all(a == b or _misspelled(a, b) for a, b in zip(left, right, strict=True))


def _misspelled(one: str, other: str) -> bool:
    """One word, spelled in two ways. Numbers have no spelling, and a first letter is often a prefix (lock, unlock)."""
    alike = one.isalpha() and other.isalpha() and one[0] == other[0]
    return alike and difflib.SequenceMatcher(None, one, other).ratio() >= _SPELLING
