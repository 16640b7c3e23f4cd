from __future__ import annotations

import json

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import JobCancelled
from finetune_pipeline.evaluate import classical
from finetune_pipeline.records import Silent
from finetune_pipeline_tests.artifacts import example

LABEL = AnswerFormat(format="label", labels=("refund", "delivery"))
JSON = AnswerFormat.model_validate({"format": "json", "schema": {"type": "object"}})
SAID = {"refund": "money back please", "delivery": "parcel is late"}


def test_labels_are_learned() -> None:
    train = [example(f"{label}{i}", f"{text} {i}", label) for label, text in SAID.items() for i in range(10)]
    given = classical.answers(
        train, [example("a", "my money back", ""), example("b", "late parcel", "")], LABEL, Silent()
    )
    assert [(answer.id, answer.text) for answer in given] == [("a", "refund"), ("b", "delivery")]


def test_fields_of_few_values_are_learned_and_others_get_the_most_frequent() -> None:
    train = []
    for label, text in SAID.items():
        for i in range(10):
            answer = {"intent": label, "urgent": False, "order": None if i % 3 else f"HV-{label}{i}"}
            train.append(example(f"{label}{i}", f"{text} {i}", json.dumps(answer)))
    (given,) = classical.answers(train, [example("a", "money back, HV-1", "")], JSON, Silent())
    assert json.loads(given.text) == {"intent": "refund", "urgent": False, "order": None}


def test_it_says_how_far_it_is_and_ends_between_two_fields_when_it_is_told_to() -> None:
    said: list[tuple[str, int, int]] = []

    class Stopped(Silent):
        def alive(self) -> None:
            if said:
                raise JobCancelled("stopped")

        def progress(self, what: str, done: int, total: int, **figures: float) -> None:
            said.append((what, done, total))

    rows = [example(f"a{i}", f"{SAID['refund']} {i}", json.dumps({"intent": i % 2, "urgent": i % 3})) for i in range(9)]
    with pytest.raises(JobCancelled):
        classical.answers(rows, rows[:1], JSON, Stopped())
    assert said == [("fields of the classical model", 0, 2)]


def test_free_text_has_no_classical_model() -> None:
    assert not classical.applies(AnswerFormat())
