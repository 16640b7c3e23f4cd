"""The form for an answer, and the answer of a posted form."""

from __future__ import annotations

import json

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.desk.answer_form import read, with_errors
from finetune_pipeline.desk.form_fields import WHOLE, example, form_fields, guidance, table

from .sample_tasks import SCHEMA

JSON = AnswerFormat(format="json", json_schema=SCHEMA)
LABEL = AnswerFormat(format="label", labels=("yes", "no"))
ANSWER = '{"intent": "refund", "priority": "low", "product": null, "order": "HV-12345"}'
POSTED = {"intent": '"refund"', "priority": '"low"', "product": "null", "order": "HV-12345"}


def test_each_property_is_a_field_of_its_kind() -> None:
    form = {field.name: field for field in form_fields(JSON, ANSWER)}
    assert [field.kind for field in form.values()] == ["choice", "choice", "choice", "text"]
    assert form["intent"].value == '"refund"'
    assert ("null", "none") in form["product"].options and form["product"].value == "null"
    assert form["order"].nullable and form["order"].hint == "like HV-12345, or left empty for none"


def test_a_form_without_changes_returns_the_same_text() -> None:
    spaced = ANSWER.replace(": ", " :  ")
    assert read(JSON, POSTED, spaced).text == spaced


def test_changes_are_written_in_the_order_of_the_schema() -> None:
    edited = read(JSON, {**POSTED, "intent": '"returns"', "order": ""}, '{"order": "HV-12345", "intent": "refund"}')
    assert edited.errors == {}
    assert edited.text == '{"intent": "returns", "priority": "low", "product": null, "order": null}'


def test_an_error_is_shown_beside_its_field() -> None:
    edited = read(JSON, {**POSTED, "order": "12"}, ANSWER)
    assert list(edited.errors) == ["order"]
    assert "does not match" in edited.errors["order"]
    again = with_errors(form_fields(JSON, ANSWER), {**POSTED, "order": "12"}, edited)
    assert [(field.name, field.value) for field in again if field.error] == [("order", "12")]


def test_a_choice_accepts_only_its_options() -> None:
    assert read(JSON, {**POSTED, "intent": '"world peace"'}, ANSWER).errors == {"intent": "choose one of the list"}
    assert read(JSON, {**POSTED, "intent": ""}, ANSWER).errors == {"intent": "choose one"}


def test_an_unreadable_answer_has_an_empty_form() -> None:
    form = form_fields(JSON, '{"intent": "ref')
    assert [field.value for field in form] == ["", "", "", ""]
    assert read(JSON, POSTED, '{"intent": "ref').text == ANSWER


def test_numbers_booleans_and_nested_values() -> None:
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
    assert read(spec, {**posted, "count": "many"}, original).errors["count"] == "this has to be a number"
    assert "finite" in read(spec, {**posted, "count": "1e999"}, original).errors["count"]
    assert "-1" in read(spec, {**posted, "count": "-1"}, original).errors["count"]
    assert "not JSON" in read(spec, {**posted, "tags": "[a"}, original).errors["tags"]


def test_an_error_over_several_fields_is_one_of_the_whole_answer() -> None:
    spec = AnswerFormat(format="json", json_schema={**SCHEMA, "minProperties": 9})
    assert list(read(spec, POSTED, ANSWER).errors) == [WHOLE]


def test_labels_are_a_choice() -> None:
    (field,) = form_fields(LABEL, "yes")
    assert (field.kind, field.value, field.options) == ("choice", '"yes"', (('"yes"', "yes"), ('"no"', "no")))
    assert read(LABEL, {WHOLE: '"no"'}, "yes").text == "no"
    assert "perhaps" in read(LABEL, {WHOLE: "perhaps"}, "yes").errors[WHOLE]


def test_plain_text_is_one_field() -> None:
    spec = AnswerFormat()
    assert form_fields(spec, "Hello")[0].kind == "long"
    assert read(spec, {WHOLE: " Good morning "}, "Hello").text == "Good morning"
    assert read(spec, {WHOLE: " "}, "Hello").errors == {WHOLE: "the answer is empty"}


def test_an_answer_as_a_table() -> None:
    assert table('{"order_no": null, "ok": true, "n": 3}') == [
        ("Order no", "none", True),
        ("Ok", "yes", False),
        ("N", "3", False),
    ]
    assert table("plain") is None and table("[1]") is None


def test_guidance_lists_the_allowed_values() -> None:
    assert guidance(LABEL) == [("Answer", ["yes", "no"], "")]
    assert guidance(JSON)[1] == ("Priority", ["high", "normal", "low"], "")
    assert guidance(AnswerFormat()) == []


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [("^HV-[0-9]{5}$", "HV-12345"), (r"^\d{3}-\d$", "123-1"), ("^[A-Z]+$", "^[A-Z]+$"), ("(", "(")],
)
def test_patterns_are_shown_by_example(pattern: str, shown: str) -> None:
    assert example(pattern) == shown
