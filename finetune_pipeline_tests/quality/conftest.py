"""What the tests of the gates share: a declaration, rows that are right, and the way through Great Expectations."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Task, task_from
from finetune_pipeline.quality import gate, rules, suite
from finetune_pipeline.records import Example, Message, Verdict

SCHEMA = {
    "type": "object",
    "required": ["intent"],
    "additionalProperties": False,
    "properties": {"intent": {"enum": ["delivery", "refund"]}},
}
ANSWER = '{"intent": "refund"}'


def declare(**sections: Any) -> Task:
    plain = {
        "name": "tickets",
        "sources": [{"path": "raw/tickets.csv"}],
        "base": {"path": "/models/small", "license": "apache-2.0"},
        "answer": {"format": "json", "schema": SCHEMA},
        "quality": {"min_rows": 10},
    }
    return task_from(plain | sections, "the test's declaration")


def row(number: int, prompt: str | None = None, answer: str = ANSWER) -> Example:
    said = f"where is parcel {_word(number)}" if prompt is None else prompt
    return Example(f"row{number}", (Message("user", said), Message("assistant", answer)), "tickets", f"t.csv:{number}")


def rows(count: int, bad: int = 0) -> list[Example]:
    """`count` rows, the first `bad` of which break the schema."""
    return [row(n, answer="{}" if n < bad else ANSWER) for n in range(count)]


def verdict(
    examples: list[Example], task: Task, dropped: int = 0, read: dict[str, rules.Reading] | None = None
) -> Verdict:
    frame = rules.table(examples, task, dropped, read or {})
    return gate.evaluate_quality(suite.run(frame, task, "test"), frame, rules.rules_of(task), task.quality, "c0ffee")


@pytest.fixture
def task() -> Task:
    return declare()


def _word(number: int) -> str:
    """A different word for each number: digits could be taken for personal data."""
    letters = ""
    while number >= 0:
        letters, number = chr(97 + number % 26) + letters, number // 26 - 1
    return letters
