"""What the tests of the quality gate share: a declaration, rows that are right, and a run of Great Expectations."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Task, task_from
from finetune_pipeline.quality import gate, suite
from finetune_pipeline.quality.losses import Losses, Reading
from finetune_pipeline.quality.suite import Checked
from finetune_pipeline.quality.table import frame_of
from finetune_pipeline.records import Example, Message, Verdict

SCHEMA = {
    "type": "object",
    "required": ["intent"],
    "additionalProperties": False,
    "properties": {"intent": {"enum": ["delivery", "refund"]}},
}
COMPLETION = '{"intent": "refund"}'


def declare(**sections: Any) -> Task:
    plain = {
        "name": "tickets",
        "sources": [{"path": "raw/tickets.csv"}],
        "base": {"path": "/models/small", "license": "apache-2.0"},
        "answer": {"format": "json", "schema": SCHEMA},
        "quality": {"min_rows": 10},
    }
    return task_from(plain | sections, "the test's declaration")


def row(number: int, prompt: str | None = None, completion: str = COMPLETION) -> Example:
    text = f"where is parcel {_word(number)}" if prompt is None else prompt
    return Example(
        f"row{number}", (Message("user", text), Message("assistant", completion)), "tickets", f"t.csv:{number}"
    )


def rows(count: int, bad: int = 0) -> list[Example]:
    """`count` rows, the first `bad` of which break the schema."""
    return [row(n, completion="{}" if n < bad else COMPLETION) for n in range(count)]


def check(examples: list[Example], task: Task, dropped: int = 0, read: dict[str, Reading] | None = None) -> Checked:
    losses = Losses.of(task, len(examples), dropped, read or {})
    return suite.run(frame_of(examples, task), task, losses, "test")


def verdict(examples: list[Example], task: Task, dropped: int = 0, read: dict[str, Reading] | None = None) -> Verdict:
    losses = Losses.of(task, len(examples), dropped, read or {})
    checked = check(examples, task, dropped, read)
    return gate.evaluate_quality(checked, frame_of(examples, task), losses, task.quality, "c0ffee")


def broken(example: Example, **sections: object) -> list[str]:
    """The rules that one row breaks among 30 that are right, as Great Expectations finds them."""
    task = declare(**sections)
    checked = check([*(row(n, completion=RIGHT[task.answer.format]) for n in range(900, 930)), example], task)
    return [name for name in checked.rules if checked.broken[name].iloc[-1]]


RIGHT = {"json": COMPLETION, "label": "refund", "text": "It is on its way."}


@pytest.fixture
def task() -> Task:
    return declare()


def _word(number: int) -> str:
    """A different word for each number: digits could be taken for personal data."""
    letters = ""
    while number >= 0:
        letters, number = chr(97 + number % 26) + letters, number // 26 - 1
    return letters
