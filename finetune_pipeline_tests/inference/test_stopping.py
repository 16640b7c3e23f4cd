"""The end of an answer in its declared format."""

from __future__ import annotations

import pytest

from finetune_pipeline.clean.answers import lenient
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.stopping import StopRule, complete, final

JSON = AnswerFormat.model_validate({"format": "json", "schema": {"type": "object"}})
LABEL = AnswerFormat(format="label", labels=("refund", "returns"))
TEXT = AnswerFormat()


@pytest.mark.parametrize(
    ("text", "spec", "expected"),
    [
        ('{"a": {"b": "}"}} I hope this helps', JSON, '{"a": {"b": "}"}}'),
        ('\n {"a": 1}', JSON, '{"a": 1}'),
        ('{"a": {"b": 1}', JSON, None),
        ('{"a": "}', JSON, None),
        ('Sure! {"a": 1}', JSON, None),
        ("5 is it", JSON, None),
        ('```json\n{"a": 1}', JSON, None),
        ('```json\n{"a": 1}\n``', JSON, None),
        ('```json\n{"a": 1}\n``` I hope', JSON, '```json\n{"a": 1}\n```'),
        ('```{"a": 1}```', JSON, '```{"a": 1}```'),
        ('```json\n{"a": 1\n```', JSON, None),
        ("\n refund\nThe customer", LABEL, "refund"),
        ("refund", LABEL, None),
        ("{}\n", TEXT, None),
    ],
)
def test_the_complete_answer_at_the_beginning_of_a_text(text: str, spec: AnswerFormat, expected: str | None) -> None:
    assert complete(text, spec) == expected


def test_an_incomplete_answer_is_not_cut() -> None:
    assert final(' Sure! {"a": 1} ', JSON) == 'Sure! {"a": 1}'
    assert final('{"a": 1}}', JSON) == '{"a": 1}'


@pytest.mark.parametrize("text", ['{"a": 1}', '```json\n{"a": 1}\n```', "refund\n"])
@pytest.mark.parametrize("more", [' {"a": 2}', "\n```", " I hope this helps", "\nreturns"])
def test_text_after_the_end_does_not_change_how_an_answer_is_read(text: str, more: str) -> None:
    spec = LABEL if "refund" in text else JSON
    read = lenient(final(text + more, spec), spec)
    assert read == ("refund" if spec is LABEL else '{"a": 1}')
    assert lenient(final(text, spec), spec) == read


def test_an_answer_in_a_fence_ends_with_the_closing_fence() -> None:
    pieces = ["```json\n", '{"a"', ": 1}", "\n", "```"]
    rule = StopRule(lambda ids: "".join(pieces[i] for i in ids), JSON)
    assert [rule(list(range(n + 1))) for n in range(5)] == [False, False, False, False, True]


def test_the_rule_decodes_only_when_a_token_can_end_the_answer() -> None:
    pieces = {1: '{"a', 2: '": 1', 3: "}", 4: "x"}
    decoded: list[int] = []

    def decode(ids: object) -> str:
        assert isinstance(ids, list)
        decoded.append(len(ids))
        return "".join(pieces[i] for i in ids)

    rule = StopRule(decode, JSON)
    assert [rule([1]), rule([1, 2]), rule([1, 2, 3])] == [False, False, True]
    assert decoded == [1, 1, 1, 3]
    assert StopRule(decode, TEXT)([3]) is False
