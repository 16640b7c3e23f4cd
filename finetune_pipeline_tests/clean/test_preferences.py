"""A rejected completion gets the fixes of the row, is removed where it is no use, and decides between duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from finetune_pipeline.clean.pipeline import Cleaned, clean
from finetune_pipeline.config import AnswerFormat, Clean
from finetune_pipeline.records import Example, Message
from finetune_pipeline_tests.artifacts import example

TEXT = AnswerFormat()
LABELS = AnswerFormat(format="label", labels=("delivery", "refund"))
ORDER = AnswerFormat(
    format="json",
    json_schema={"required": ["intent"], "properties": {"intent": {"type": "string"}, "phone": {"type": "string"}}},
)


STRICT = AnswerFormat(format="json", json_schema={"properties": {"phone": {"type": "string", "pattern": "^[0-9]+$"}}})


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def pair(id_: str, prompt: str, completion: str, rejected: str | None) -> Example:
    return replace(example(id_, prompt, completion), rejected=rejected)


def cleaned(*rows: Example, answer: AnswerFormat = TEXT, system: str = "", **rules: Any) -> Cleaned:
    return clean(rows, Clean(**rules), answer, system, words)


def one(row: Example, answer: AnswerFormat = TEXT, **rules: Any) -> tuple[str, str | None, list[str]]:
    result = cleaned(row, answer=answer, **rules)
    [kept] = result.kept
    return kept.completion, kept.rejected, [fix.rule for fix in result.fixes]


def test_a_rejected_completion_gets_the_text_fixes_and_the_masks_of_the_row() -> None:
    row = pair("0", "where is it?", "It comes today.", "cafÃ©\u200b, ask jo@example.com or 07700 900123 ")
    fixes = ["encoding", "control", "rejected-completion-space", "pii-email", "pii-phone"]
    assert one(row) == ("It comes today.", "café, ask <EMAIL> or <PHONE>", fixes)
    assert cleaned(row, personal_data="drop").drops[0].reason == "personal-data"
    twice = cleaned(*cleaned(row).kept)
    assert (twice.kept, twice.fixes) == (cleaned(row).kept, [])


@pytest.mark.parametrize(
    ("rejected", "why"),
    [
        (" \u200b", "empty"),
        ("It comes today. ", "equal"),
        ("It comes today.\u200b", "equal"),
        ("word " * 40, "too-long"),
    ],
)
def test_a_rejected_completion_without_use_is_removed_and_the_row_stays(rejected: str, why: str) -> None:
    completion, kept, fixes = one(pair("0", "where is it?", "It comes today.", rejected), max_tokens=40)
    assert (completion, kept, fixes[-1]) == ("It comes today.", None, f"rejected-completion-{why}")


def test_answers_that_only_masking_makes_equal_are_no_preference() -> None:
    assert one(pair("0", "who?", "Ask jo@example.com", "Ask al@example.com"))[1:] == (
        None,
        ["pii-email", "rejected-completion-equal"],
    )


def test_a_rejected_completion_may_break_the_format() -> None:
    completion, rejected, fixes = one(pair("0", "a b", '{"intent": "x"}', 'Sure! {"intent": "x"'), ORDER)
    assert (completion, rejected, fixes) == ('{"intent": "x"}', 'Sure! {"intent": "x"', [])
    fenced = '```json\n{"intent": "x"}\n```'
    assert one(pair("0", "a b", '{"intent": "x"}', fenced), ORDER)[1] == fenced  # its form is what is wrong with it
    assert one(pair("0", "a b", "refund", "Refund!"), LABELS)[1] == "Refund!"


@pytest.mark.parametrize(
    ("completion", "rejected", "answer", "expected"),
    [
        ('{"intent":"x"}', '{"intent":"y"}', ORDER, '{"intent": "y"}'),
        ('```\n{"intent": "x"}\n```', '```\n{"intent": "y"}\n```', ORDER, '{"intent": "y"}'),
        ("Refund", "Delivery", LABELS, "delivery"),
        (" kind ", " rude ", TEXT, "rude"),
    ],
)
def test_cleaning_makes_no_difference_of_form_between_the_two(
    completion: str, rejected: str, answer: AnswerFormat, expected: str
) -> None:
    """A model would learn the form of the source as what was rejected."""
    assert one(pair("0", "a b", completion, rejected), answer)[1] == expected


def test_personal_data_in_a_rejected_answer_is_masked_as_json_or_as_text() -> None:
    right = '{"intent": "x"}'
    assert one(pair("0", "a b", right, '{"to": "a\\njo@example.com"}'), ORDER)[1] == '{"to": "a\\n<EMAIL>"}'
    assert one(pair("0", "a b", right, '{"to": "a\\njo@example.com"'), ORDER)[1] == '{"to": "a\\<EMAIL>"'


def test_one_prompt_and_one_completion_are_one_row_and_a_pair_is_kept_before_a_row_without() -> None:
    rows = [
        pair("0", "where is it?", "Here.", None),
        pair("1", "else", "Here.", None),
        pair("2", "where is it?", "Here.", "Go away."),
        pair("3", "where is it?", "Here.", "So what?"),
        pair("4", "Where is it", "Here.", None),
    ]
    result = cleaned(*rows)
    assert [(row.id, row.rejected) for row in result.kept] == [("1", None), ("2", "Go away.")]
    assert {drop.id: (drop.reason, drop.detail) for drop in result.drops} == {
        "0": ("exact-duplicate", "of 2 (test.csv:2)"),
        "3": ("exact-duplicate", "of 2 (test.csv:2), with another rejected completion"),
        "4": ("near-duplicate", "of 2 (test.csv:2)"),
    }
    assert result.summary()["pairs"] == 1


def test_preferences_that_reverse_each_other_are_dropped_and_a_ranking_is_kept() -> None:
    rows = [
        pair("0", "hi", "hello", "go away"),
        pair("1", "hi", "go away ", "hello"),
        pair("2", "ho", "best", "good"),
        pair("3", "ho", "good", "bad"),
        pair("4", "HI", "go away", "hello"),
    ]
    result = cleaned(*rows)
    assert [(drop.id, drop.reason, drop.detail) for drop in result.drops] == [
        ("0", "contradiction", "1 (test.csv:1) prefers the rejected completion to this one"),
        ("1", "contradiction", "0 (test.csv:0) prefers the rejected completion to this one"),
    ]
    assert result.summary()["several_completions"] == {"prompts": 1, "rows": 2}
    assert [drop.reason for drop in cleaned(*rows, contradictions="keep").drops] == ["near-duplicate"]


def test_earlier_turns_of_the_assistant_are_cleaned_like_its_last_and_none_may_be_empty() -> None:
    def talk(*said: str, answer: AnswerFormat = TEXT) -> Cleaned:
        names = ("user", "assistant")
        turns = tuple(Message(names[n % 2], text) for n, text in enumerate(said))  # type: ignore[arg-type]
        return cleaned(Example("0", turns, "s", "s:1"), answer=answer)

    result = talk("hi", " Hello, mail\u200b jo@example.com \n", "where?", "there")
    assert result.kept[0].messages[1].content == "Hello, mail <EMAIL>"
    assert [fix.rule for fix in result.fixes] == ["control", "completion-space", "pii-email"]
    drops = talk("hi", "\u200b", "where?", "there").drops
    assert [(d.reason, d.detail) for d in drops] == [("empty-completion", "message 2, an earlier one of the assistant")]
    asked = talk("hi", "Which one?", "that", '{"intent":"x"}', answer=ORDER)
    assert [m.content for m in asked.kept[0].messages] == ["hi", "Which one?", "that", '{"intent": "x"}']
    mail = talk("hi", '{"intent":"a\\njo@example.com"}', "that", '{"intent": "x"}', answer=ORDER)
    assert mail.kept[0].messages[1].content == '{"intent": "a\\n<EMAIL>"}'
    number = talk("hi", '{"intent": "x", "phone": "5550104477"}', "that", '{"intent": "x"}', answer=STRICT)
    assert [drop.reason for drop in number.drops] == ["personal-data"]  # masked, it would not be in the format
