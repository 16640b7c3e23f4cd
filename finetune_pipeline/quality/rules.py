"""What a good row is: the rules of the quality gate, and the table that Great Expectations judges. Pure, no I/O.

A rule says of one row whether it is right in one respect; `row_ok` says whether it is right in every respect, which is
what the 95 % are about: two rules of which each holds for 95 % of the rows may leave only 90 % of them sound.

    id                prompt_chars  completion_chars  prompt_fits  completion_valid  ...  row_ok
    9f1c20e4a7b35d68              41            77           True         False  ...   False

The table holds lengths and verdicts, never a text: what is not there cannot turn up in a report.

What it is not: cleaning. Nothing is fixed or dropped here; cleaning should have left nothing to find, and this is how
one knows. What a valid answer, personal data and HTML are stands in `clean/`, once for both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from finetune_pipeline.clean import answers, pii
from finetune_pipeline.clean.markup import without_markup
from finetune_pipeline.config import AnswerFormat, Task
from finetune_pipeline.records import Example, content_id

if TYPE_CHECKING:
    from pandas import DataFrame

CHUNK_ROWS = 20_000  # texts of this many rows are in memory at the same time; verdicts of all
ROW_OK = "row_ok"
SHARE_DROPPED = "share_dropped"
UNREADABLE = "unreadable: "  # and the source's name

# The replacement character, a byte order mark within the text, control characters but for line ends and tabs, halves of
# surrogate pairs.
_BROKEN = re.compile("[\ufffd\ufeff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
# Mojibake is a few characters long, and one of them is not ASCII: of long ASCII parts only the ends are searched.
_LONG_ASCII = re.compile(r"(?<=[\x00-\x7f]{6})[\x00-\x7f]+(?=[\x00-\x7f]{6})")
_ROLES = re.compile(r"s?(?:ua)+")

RowCheck = Callable[[Sequence[Example]], list[bool]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One respect in which a row has to be right: the column's name, what it says of a row in English, and what
    judges a chunk of rows. `check` is None for what can only be seen over all rows (uniqueness)."""

    name: str
    says: str
    check: RowCheck | None


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of one source: `rows` were found in its files, `unreadable` of them were dropped when reading."""

    rows: int
    unreadable: int

    @property
    def share(self) -> float:
        return self.unreadable / self.rows if self.rows else 0.0


def limits(task: Task) -> dict[str, float]:
    """The share of unreadable rows that each source may have, by its name; where sources share one, the strictest."""
    found: dict[str, float] = {}
    for source in task.sources:
        found[source.label] = min(source.max_unreadable, found.get(source.label, 1.0))
    return found


def rules_of(task: Task) -> tuple[Rule, ...]:
    """The rules that the declaration asks for, in the order of the report.

    Two depend on what cleaning was told: personal data may stay where `clean.personal_data` is keep, and HTML where
    `clean.html` is false (a task may be about HTML; so answers are never searched for it).
    """
    quality = task.quality
    q, a = quality.max_prompt_chars, quality.max_completion_chars
    rules = [
        Rule("roles_in_order", "user and assistant take turns, and the answer comes last", _roles),
        Rule("prompt_fits", f"the question has text, and at most {q:,} characters", _fits("prompt", q)),
        Rule("completion_fits", f"the answer has text, and at most {a:,} characters", _fits("completion", a)),
        Rule("completion_valid", f"the answer is {_form(task.answer)}", _valid(task.answer)),
    ]
    if task.clean.personal_data != "keep":
        rules.append(Rule("no_personal_data", "no e-mail address, phone, card or account number is left", _anonymous))
    if task.clean.html:
        rules.append(Rule("no_html", "no HTML tag or entity is left in the question", _no_html))
    rules.append(Rule("encoding_intact", "no text holds traces of a broken encoding", _encoding))
    both = " with the same answer" if _several_answers(task) else ""
    rules.append(Rule("prompt_unique", f"the question is not asked in another row{both}", None))
    return tuple(rules)


def table(examples: Iterable[Example], task: Task, dropped: int, read: Mapping[str, Reading]) -> DataFrame:
    """One row for each example: id, origin, lengths in characters (null where there is no text), a boolean for each
    rule, `row_ok` = all of them, and the losses as shares (0.0 to 1.0, the same in every row): `share_dropped` of all
    rows, where `dropped` rows did not survive cleaning, and for each source what of it could not be read. No examples
    give a table without rows."""
    import pandas as pd

    rules = rules_of(task)
    by_answer = _several_answers(task)
    parts = [_chunk(rows, rules, by_answer) for rows in _chunks(examples)] or [_chunk([], rules, by_answer)]
    frame = pd.concat(parts, ignore_index=True)
    frame["prompt_unique"] = ~frame.pop("asked").duplicated(keep=False)
    frame[ROW_OK] = frame[[rule.name for rule in rules]].all(axis=1)
    lost = dropped + sum(reading.unreadable for reading in read.values())
    frame[SHARE_DROPPED] = lost / (lost + len(frame)) if len(frame) else 1.0
    for name in limits(task):
        frame[UNREADABLE + name] = read.get(name, Reading(0, 0)).share
    return frame


def _several_answers(task: Task) -> bool:
    """Whether one question may have several answers (but no pair twice): where that is declared, and in free text."""
    return task.clean.contradictions == "keep" or task.answer.format == "text"


def _chunk(rows: Sequence[Example], rules: Sequence[Rule], by_answer: bool) -> DataFrame:
    import pandas as pd

    columns = {
        "id": [row.id for row in rows],
        "origin": [row.origin for row in rows],
        "prompt_chars": pd.array([len(row.prompt) or None for row in rows], dtype="Int64"),
        "completion_chars": pd.array([len(row.completion) or None for row in rows], dtype="Int64"),
        "asked": [_asked(row, by_answer) for row in rows],
    }
    checked = {rule.name: pd.array(rule.check(rows), dtype="bool") for rule in rules if rule.check is not None}
    return pd.DataFrame(columns | checked)


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    rows = iter(examples)
    while chunk := list(islice(rows, CHUNK_ROWS)):
        yield chunk


def _asked(row: Example, with_completion: bool) -> str:
    """What makes two rows the same question: all that was said before the answer (and the answer, if asked for)."""
    said = row.messages if with_completion or not row.ends_with_completion else row.messages[:-1]
    return content_id(*(part for message in said for part in (message.role, message.content)))


def _roles(rows: Sequence[Example]) -> list[bool]:
    return [_ROLES.fullmatch("".join(m.role[0] for m in row.messages)) is not None for row in rows]


def _fits(part: str, most: int) -> RowCheck:
    def check(rows: Sequence[Example]) -> list[bool]:
        texts: list[str] = [getattr(row, part) for row in rows]
        return [len(text) <= most and not text.isspace() and text != "" for text in texts]

    return check


def _form(answer: AnswerFormat) -> str:
    return {
        "json": "valid JSON of the declared schema",
        "label": f"one of the {len(answer.labels)} declared labels",
        "text": "a text of the declared form",
    }[answer.format]


def _valid(spec: AnswerFormat) -> RowCheck:
    def check(rows: Sequence[Example]) -> list[bool]:
        texts = [row.completion for row in rows]
        good = {text: answers.problem(text, spec) is None for text in set(texts)}  # answers repeat: judge each once
        return [good[text] for text in texts]

    return check


def _anonymous(rows: Sequence[Example]) -> list[bool]:
    return _every_text(rows, lambda text: not pii.mask(text)[1])


def _no_html(rows: Sequence[Example]) -> list[bool]:
    return [without_markup(row.prompt) == row.prompt for row in rows]


def _encoding(rows: Sequence[Example]) -> list[bool]:
    from ftfy.badness import is_bad  # one regular expression that knows what mojibake looks like

    def good(text: str) -> bool:
        if _BROKEN.search(text):
            return False
        return text.isascii() or not any(is_bad(piece) for piece in _LONG_ASCII.split(text) if not piece.isascii())

    return _every_text(rows, good)


def _every_text(rows: Sequence[Example], good: Callable[[str], bool]) -> list[bool]:
    """Whether `good` holds for all that user and assistant say; each text is judged once, however often it is said."""
    said = [[m.content for m in row.messages if m.role != "system"] for row in rows]
    known = {text: good(text) for text in {text for texts in said for text in texts}}
    return [all(known[text] for text in texts) for texts in said]
