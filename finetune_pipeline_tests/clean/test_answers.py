"""Answers are validated strictly, with messages free of personal data, and normalized where that is unambiguous."""

from __future__ import annotations

import pytest
from referencing.exceptions import Unresolvable

from finetune_pipeline.clean.answers import Truncated, lenient, normalize_answer, parse, problem
from finetune_pipeline.config import AnswerFormat

JSON = AnswerFormat(
    format="json",
    json_schema={
        "type": "object",
        "additionalProperties": False,
        "required": ["intent", "order"],
        "properties": {
            "intent": {"enum": ["delivery", "refund", None]},
            "order": {"type": ["string", "null"], "pattern": "^HV-[0-9]{5}$"},
            "who": {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "integer"}}},
        },
    },
)
LABEL = AnswerFormat(format="label", labels=("Refund", "delivery", "DELIVERY", "yes"))
TEXT = AnswerFormat()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"intent": "delivery", "order": null}', None),
        ('{"intent": "delivry", "order": null}', "intent: 'delivry' is not one of the 3 allowed values"),
        ('{"intent": "delivery"}', "'order' is a required property"),
        ('{"intent": "delivery", "order": 3}', "order: '3' is not of type string or null"),
        ('{"intent": "delivery", "order": "48213"}', "order: '48213' does not match"),
        ('{"intent": "delivery", "order": "mail jo@example.com"}', "order: 'mail <EMAIL>' does not match"),
        ('{"intent": "delivery", "order": null, "x": 1}', "'x' was unexpected"),
        ('{"intent": "delivery", "intent": "refund", "order": null}', "a key is repeated"),
        ('{"intent": NaN, "order": null}', "invalid JSON: NaN"),
        ('["delivery"]', "is not of type object"),
        ("delivery", "invalid JSON: Expecting value at character 1"),
        ("   ", "the answer is empty"),
    ],
)
def test_json_answers(text: str, message: str | None) -> None:
    result = problem(text, JSON)
    assert (result is None) if message is None else (result is not None and message in result)


@pytest.mark.parametrize("text", ['{"intent": "deli', '{"intent"', '{"intent": "delivery",', "{", '{"a": [1, 2'])
def test_json_that_ends_early_is_truncated(text: str) -> None:
    with pytest.raises(Truncated):
        parse(text, JSON)


def test_a_schema_never_fetches_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The declaration refuses such a schema; this tests one that was not checked there."""
    spec = AnswerFormat.model_construct(format="json", json_schema={"$ref": "http://127.0.0.1:9/x.json"})
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it was fetched"))
    with pytest.raises(Unresolvable):
        parse("{}", spec)


def test_labels_and_texts() -> None:
    assert parse(" Refund\n", LABEL) == "Refund"
    assert problem("refund", LABEL) == "'refund' is not one of the 4 labels"
    assert parse(" any text ", TEXT) == "any text"
    assert problem("", TEXT) == "the answer is empty"


@pytest.mark.parametrize(
    ("text", "written", "rules"),
    [
        ('{"order":null,"intent":"delivery"}', '{"intent": "delivery", "order": null}', ["completion-form"]),
        ('{"intent": " Refund", "order": null}', '{"intent": "refund", "order": null}', ["completion-label"]),
        (
            '```json\n{"intent": "refund", "order": null}\n```',
            '{"intent": "refund", "order": null}',
            ["completion-fence"],
        ),
        ('{"who": {"a": 1, "b": 2}}', '{"who": {"b": 2, "a": 1}}', ["completion-form"]),
        ('{"x": "caf\\u00e9"}', '{"x": "café"}', ["completion-form"]),
        ('{"intent": "delivery", "order": null}', '{"intent": "delivery", "order": null}', []),
        ('{"intent": "deli', '{"intent": "deli', []),
        ("no json", "no json", []),
    ],
)
def test_json_is_written_in_its_canonical_form(text: str, written: str, rules: list[str]) -> None:
    assert normalize_answer(text, JSON) == (written, rules)
    assert normalize_answer(written, JSON) == (written, [])


def test_labels_are_spelled_as_declared_only_where_one_matches() -> None:
    assert normalize_answer(" refund ", LABEL) == ("Refund", ["completion-label"])
    assert normalize_answer("yes\n", LABEL) == ("yes", ["completion-label"])
    assert normalize_answer("Delivery", LABEL) == ("Delivery", [])  # two declared labels match
    assert normalize_answer("delivery", LABEL) == ("delivery", [])
    assert normalize_answer("refunds", LABEL) == ("refunds", [])
    assert normalize_answer(" a text ", TEXT) == ("a text", ["completion-space"])


WHOLE = '{"intent": "refund", "order": null}'


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{WHOLE}\n```",
        f"```{WHOLE}```",
        f"Sure, here it is:\n```json\n{WHOLE}\n```\nAnything else?",
        f"The answer is {WHOLE}.",
        '{"order": null,\n "intent": " Refund"}',
    ],
)
def test_lenient_extracts_the_only_object(text: str) -> None:
    assert lenient(text, JSON) == WHOLE


@pytest.mark.parametrize(
    "text",
    [
        f"{WHOLE} or {WHOLE}",  # which of them?
        f'{{"who": {WHOLE}, "order": ',  # the complete object is only a part
        f"Use {{braces}}: {WHOLE}",
        f"Choose from: [{WHOLE}]",
        '```json\n{"intent": "refund", "intent": "delivery", "order": null}\n```',
        "I would refund it",
        "{" * 5000,
    ],
)
def test_lenient_leaves_ambiguous_text_unchanged(text: str) -> None:
    assert lenient(text, JSON) == text
    assert problem(lenient(text, JSON), JSON) is not None


@pytest.mark.parametrize("text", ["refund.", '"Refund"', " `REFUND`!\n", "“refund”.", "'Refund.'", "**Refund**"])
def test_lenient_removes_quotes_and_end_marks_of_a_label(text: str) -> None:
    assert lenient(text, LABEL) == "Refund"


@pytest.mark.parametrize("text", ["Delivery", "delivery?!x", "Refund, please", "", "..."])
def test_a_text_that_matches_no_label_or_two_is_unchanged(text: str) -> None:
    assert lenient(text, LABEL) == text


def test_end_marks_that_belong_to_a_label_are_compared() -> None:
    spec = AnswerFormat(format="label", labels=("Yes!", "Yes?", "no."))
    assert [lenient(text, spec) for text in ('"yes!"', "No", "yes")] == ["Yes!", "no.", "yes"]


def test_lenient_changes_only_the_outer_space_of_a_text() -> None:
    assert lenient(' "Hello." ', TEXT) == '"Hello."'
