"""The classical baseline learns labels and the fields of an answer."""

from __future__ import annotations

import json

import pytest

from finetune_pipeline.baseline import classical
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.records import Silent
from finetune_pipeline_tests.artifacts import example

LABEL = AnswerFormat(format="label", labels=("refund", "delivery"))
JSON = AnswerFormat.model_validate({"format": "json", "schema": {"type": "object"}})
TEXTS = {"refund": "money back please", "delivery": "parcel is late"}


def test_labels_are_learned() -> None:
    train = [example(f"{label}{i}", f"{text} {i}", label) for label, text in TEXTS.items() for i in range(10)]
    tests = [example("a", "my money back", ""), example("b", "late parcel", "")]
    answers = classical.answers(train, tests, LABEL, Silent())
    assert [(answer.id, answer.text) for answer in answers] == [("a", "refund"), ("b", "delivery")]


def test_fields_of_few_values_are_learned_and_others_get_the_most_frequent_value() -> None:
    train = []
    for label, text in TEXTS.items():
        for i in range(10):
            completion = {"intent": label, "urgent": False, "order": None if i % 3 else f"HV-{label}{i}"}
            train.append(example(f"{label}{i}", f"{text} {i}", json.dumps(completion)))
    (answer,) = classical.answers(train, [example("a", "money back, HV-1", "")], JSON, Silent())
    assert json.loads(answer.text) == {"intent": "refund", "urgent": False, "order": None}


def test_progress_is_reported_and_a_canceled_job_stops_between_two_fields() -> None:
    progress: list[tuple[str, int, int]] = []

    class Canceled(Silent):
        def alive(self) -> None:
            if progress:
                raise JobCanceled("stopped")

        def progress(self, what: str, done: int, total: int, **figures: float) -> None:
            progress.append((what, done, total))

    completions = [json.dumps({"intent": i % 2, "urgent": i % 3}) for i in range(9)]
    rows = [example(f"a{i}", f"{TEXTS['refund']} {i}", completion) for i, completion in enumerate(completions)]
    with pytest.raises(JobCanceled):
        classical.answers(rows, rows[:1], JSON, Canceled())
    assert progress == [("fields of the classical model", 0, 2)]


def test_free_text_has_no_classical_model() -> None:
    assert not classical.applies(AnswerFormat())
