"""The pure core of the stage: all rules on all rows, in order, with a ledger line for every change and every drop.

    mend → tidy and validate the answer → personal data → length → exact duplicates, contradictions, near duplicates

Personal data goes before duplicates are looked for: rows that differ in a phone number only are one row afterwards.

What it is not: any single rule (mend.py, answers.py, personal.py, lengths.py, duplicates.py), or files (assets.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from finetune_pipeline.clean import lengths
from finetune_pipeline.clean.answers import Truncated, dump, parse, problem, tidy
from finetune_pipeline.clean.duplicates import STAGE, without_duplicates
from finetune_pipeline.clean.mend import mend, mend_answer
from finetune_pipeline.clean.personal import mask
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Change, Drop, Example, Json, Message, Reporter, Silent

_ALIVE_EVERY = 500  # rows


@dataclass
class Cleaned:
    """The rows that stay, in order of input, and the ledger: len(kept) + len(drops) is the number of rows that came."""

    kept: list[Example] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    clusters: list[dict[str, str | float]] = field(default_factory=list)
    lengths: dict[str, Json] = field(default_factory=dict)

    def summary(self) -> dict[str, Json]:
        """Figures for people."""
        return {
            "rows": len(self.kept) + len(self.drops),
            "kept": len(self.kept),
            "drops": len(self.drops),
            "dropped": dict(Counter(drop.reason for drop in self.drops).most_common()),
            "changed": dict(Counter(change.rule for change in self.changes).most_common()),
            "changed_rows": len({change.id for change in self.changes} & {row.id for row in self.kept}),
            "tokens": self.lengths,
        }


class _Refused(Exception):
    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def clean(
    rows: Sequence[Example],
    rules: Clean,
    answer: AnswerFormat,
    system: str,
    count: lengths.Counter,
    report: Reporter | None = None,
) -> Cleaned:
    """Apply every rule. `system` is the task's system prompt and `count` counts tokens, both for the lengths.

    AssertionError when a row vanished: that is a fault of this code, never of the data.
    """
    report = report or Silent()
    result = Cleaned()
    mended: list[Example] = []
    for number, row in enumerate(rows):
        if number % _ALIVE_EVERY == 0:
            report.alive()
            report.progress("cleaning rows", number, len(rows))
        one = _one(row, rules, answer, result)
        mended += [one] if one is not None else []
    report.progress("cleaning rows", len(rows), len(rows))
    fitting = _fitting(mended, rules, system, count, result)
    report.alive()
    unique = without_duplicates([row for row, _ in fitting], rules, answer)
    result.kept, result.clusters = list(unique.kept), list(unique.clusters)
    result.drops += unique.drops
    kept = {row.id for row in result.kept}
    result.lengths = lengths.figures([length for row, length in fitting if row.id in kept])
    _reconcile(rows, result)
    return result


def _one(row: Example, rules: Clean, answer: AnswerFormat, result: Cleaned) -> Example | None:
    """One row through the rules that need no other row: mended, or dropped (None)."""
    slugs: list[str] = []
    try:
        one = _personal(_answered(_mended(row, rules, slugs), answer, slugs), rules, answer, slugs)
    except _Refused as refused:
        result.drops.append(Drop(row.id, row.origin, STAGE, refused.reason, refused.detail))
        return None
    finally:
        counts = Counter(slugs)
        result.changes += [Change(row.id, row.origin, STAGE, slug, _times(n)) for slug, n in counts.items()]
    return one


def _times(count: int) -> str:
    return "" if count == 1 else f"{count} times"


def _mended(row: Example, rules: Clean, slugs: list[str]) -> Example:
    def message(m: Message) -> Message:
        text, applied = mend_answer(m.content) if m.role == "assistant" else mend(m.content, rules.html)
        slugs.extend(applied)
        return m if text == m.content else Message(m.role, text)

    mended = replace(row, messages=tuple(message(m) for m in row.messages))
    if not mended.question.strip():
        raise _Refused("empty-question", "nothing is left of the question once it is mended")
    return mended


def _answered(row: Example, answer: AnswerFormat, slugs: list[str]) -> Example:
    """The row with its answer in the one form; refused when the answer is empty, breaks off, or breaks the format."""
    if not row.answer.strip():
        raise _Refused("empty-answer", "")
    text, applied = tidy(row.answer, answer)
    slugs.extend(applied)
    try:
        parse(text, answer)
    except Truncated as complaint:
        raise _Refused("truncated-answer", str(complaint)) from complaint
    except ValueError as complaint:
        raise _Refused("invalid-answer", str(complaint)) from complaint
    return row.with_answer(text) if text != row.answer else row


def _personal(row: Example, rules: Clean, answer: AnswerFormat, slugs: list[str]) -> Example:
    if rules.personal_data == "keep":
        return row
    masked: list[Message] = []
    kinds: list[str] = []
    for number, message in enumerate(row.messages, 1):
        in_json = answer.format == "json" and number == len(row.messages)
        text, found = _mask_json(message.content) if in_json else mask(message.content)
        kinds += found
        masked.append(Message(message.role, text) if found else message)
    if not kinds:
        return row
    if rules.personal_data == "drop":
        raise _Refused("personal-data", ", ".join(sorted(set(kinds))))
    slugs.extend(f"pii-{kind.lower()}" for kind in kinds)
    result = replace(row, messages=tuple(masked))
    broken = problem(result.answer, answer)
    if (
        broken is not None
    ):  # an e-mail address the schema asks for, say: masked it is wrong, and unmasked it is not ours
        raise _Refused("personal-data", f"{', '.join(sorted(set(kinds)))}; masked, the answer breaks its format")
    return result


def _mask_json(text: str) -> tuple[str, list[str]]:
    """Mask each text and number inside a JSON answer, then the whole, as the endpoint's log will."""
    kinds: list[str] = []

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
            hidden, found = mask(str(value))
            kinds.extend(found)
            return hidden if found else value
        return value

    value = walk(json.loads(text))
    masked, more = mask(dump(value) if kinds else text)  # {"phone": 5550100} is one only together with its key
    return masked, kinds + more


def _fitting(
    rows: Sequence[Example], rules: Clean, system: str, count: lengths.Counter, result: Cleaned
) -> list[tuple[Example, lengths.Length]]:
    fitting = []
    for row, length in zip(rows, lengths.measure(rows, system, count), strict=True):
        bad = lengths.complaint(length, rules)
        if bad is None:
            fitting.append((row, length))
        else:
            result.drops.append(Drop(row.id, row.origin, STAGE, *bad))
    return fitting


def _reconcile(rows: Sequence[Example], result: Cleaned) -> None:
    came = Counter(row.id for row in rows)
    went = Counter(row.id for row in result.kept) + Counter(drop.id for drop in result.drops)
    if came != went:
        lost = list(((came - went) + (went - came)).elements())[:5]
        raise AssertionError(f"{came.total()} rows came in and {went.total()} went out; first differing ids: {lost}")
