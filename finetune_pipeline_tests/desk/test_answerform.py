"""Answers as forms and back."""

from __future__ import annotations

import json

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.desk.answerform import WHOLE, example, fields, guidance, read, rows, with_complaints

from .sample_tasks import SCHEMA

JSON = AnswerFormat(format="json", json_schema=SCHEMA)
LABEL = AnswerFormat(format="label", labels=("yes", "no"))
ANSWER = '{"intent": "refund", "priority": "low", "product": null, "order": "HV-12345"}'
POSTED = {"intent": '"refund"', "priority": '"low"', "product": "null", "order": "HV-12345"}


def test_each_property_is_a_field_of_its_kind() -> None:
    form = {field.name: field for field in fields(JSON, ANSWER)}
    assert [field.kind for field in form.values()] == ["choice", "choice", "choice", "text"]
    assert form["intent"].value == '"refund"'
    assert ("null", "none") in form["product"].options and form["product"].value == "null"
    assert form["order"].nullable and form["order"].hint == "like HV-12345, or left empty for none"


def test_a_form_sent_back_unchanged_is_the_very_same_text() -> None:
    odd = ANSWER.replace(": ", " :  ")
    assert read(JSON, POSTED, odd).text == odd


def test_changes_are_written_in_the_schemas_order() -> None:
    edited = read(JSON, {**POSTED, "intent": '"returns"', "order": ""}, '{"order": "HV-12345", "intent": "refund"}')
    assert edited.complaints == {}
    assert edited.text == '{"intent": "returns", "priority": "low", "product": null, "order": null}'


def test_a_complaint_stands_beside_its_field() -> None:
    edited = read(JSON, {**POSTED, "order": "12"}, ANSWER)
    assert list(edited.complaints) == ["order"]
    assert "does not match" in edited.complaints["order"]
    again = with_complaints(fields(JSON, ANSWER), {**POSTED, "order": "12"}, edited)
    assert [(field.name, field.value) for field in again if field.complaint] == [("order", "12")]


def test_a_choice_takes_only_what_is_offered() -> None:
    assert read(JSON, {**POSTED, "intent": '"world peace"'}, ANSWER).complaints == {"intent": "choose one of the list"}
    assert read(JSON, {**POSTED, "intent": ""}, ANSWER).complaints == {"intent": "choose one"}


def test_unreadable_answers_start_an_empty_form() -> None:
    form = fields(JSON, '{"intent": "ref')
    assert [field.value for field in form] == ["", "", "", ""]
    assert read(JSON, POSTED, '{"intent": "ref').text == ANSWER


def test_numbers_truth_and_nested_values() -> None:
    schema = {
        "type": "object",
        "required": ["count", "sure", "tags"],
        "properties": {
            "count": {"type": "integer", "minimum": 0},
            "sure": {"type": "boolean"},
            "tags": {"type": "array"},
            "remark": {"type": "string"},
        },
    }
    spec = AnswerFormat(format="json", json_schema=schema)
    original = '{"count": 1, "sure": true, "tags": ["a"]}'
    posted = {"count": "2", "sure": "false", "tags": '["a", "b"]', "remark": ""}
    assert json.loads(read(spec, posted, original).text) == {"count": 2, "sure": False, "tags": ["a", "b"]}
    assert read(spec, {**posted, "count": "many"}, original).complaints["count"] == "this has to be a number"
    assert "finite" in read(spec, {**posted, "count": "1e999"}, original).complaints["count"]
    assert "-1" in read(spec, {**posted, "count": "-1"}, original).complaints["count"]
    assert "no JSON" in read(spec, {**posted, "tags": "[a"}, original).complaints["tags"]


def test_rules_over_several_fields_complain_of_the_whole() -> None:
    spec = AnswerFormat(format="json", json_schema={**SCHEMA, "minProperties": 9})
    assert list(read(spec, POSTED, ANSWER).complaints) == [WHOLE]


def test_labels_are_a_choice() -> None:
    (field,) = fields(LABEL, "yes")
    assert (field.kind, field.value, field.options) == ("choice", '"yes"', (('"yes"', "yes"), ('"no"', "no")))
    assert read(LABEL, {WHOLE: '"no"'}, "yes").text == "no"
    assert "perhaps" in read(LABEL, {WHOLE: "perhaps"}, "yes").complaints[WHOLE]


def test_plain_text_is_one_field() -> None:
    spec = AnswerFormat()
    assert fields(spec, "Hello")[0].kind == "long"
    assert read(spec, {WHOLE: " Good morning "}, "Hello").text == "Good morning"
    assert read(spec, {WHOLE: " "}, "Hello").complaints == {WHOLE: "the answer is empty"}


def test_rows_for_reading() -> None:
    assert rows('{"order_no": null, "ok": true, "n": 3}') == [
        ("Order no", "none", True),
        ("Ok", "yes", False),
        ("N", "3", False),
    ]
    assert rows("plain") is None and rows("[1]") is None


def test_guidance_names_what_is_allowed() -> None:
    assert guidance(LABEL) == [("Answer", ["yes", "no"], "")]
    assert guidance(JSON)[1] == ("Priority", ["high", "normal", "low"], "")
    assert guidance(AnswerFormat()) == []


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [("^HV-[0-9]{5}$", "HV-12345"), (r"^\d{3}-\d$", "123-1"), ("^[A-Z]+$", "^[A-Z]+$"), ("(", "(")],
)
def test_patterns_are_shown_by_example(pattern: str, shown: str) -> None:
    assert example(pattern) == shown
