"""The slice of a row from its completion."""

from __future__ import annotations

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.config.answer import UNREADABLE

JSON = AnswerFormat(format="json", json_schema={"type": "object"}, slice_by="intent")


@pytest.mark.parametrize(
    ("answer", "spec", "expected"),
    [
        (" refund ", AnswerFormat(format="label", labels=("refund", "delivery")), "refund"),
        ('{"intent": "refund", "order": 1}', JSON, "refund"),
        ('{"intent": ["b", 1]}', JSON, '["b", 1]'),
        ('{"intent": null}', JSON, "null"),
        ('{"order": 1}', JSON, UNREADABLE),
        ("[]", JSON, UNREADABLE),
        ("refund", JSON, UNREADABLE),
        ('{"intent": "refund"}', AnswerFormat(format="json", json_schema={"type": "object"}), ""),
        ("free text", AnswerFormat(), ""),
    ],
)
def test_the_slice_of_an_answer(answer: str, spec: AnswerFormat, expected: str) -> None:
    assert spec.slice_of(answer) == expected
