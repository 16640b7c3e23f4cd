from __future__ import annotations

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.evaluate.metrics import best_prompted, interval, score, variant
from finetune_pipeline.records import Answer, Score
from finetune_pipeline_tests.artifacts import example

SCHEMA = {
    "type": "object",
    "properties": {"intent": {"enum": ["refund", "delivery"]}, "order": {"type": ["string", "null"]}, "n": {}},
    "required": ["intent", "order"],
    "additionalProperties": False,
}
JSON = AnswerFormat.model_validate({"format": "json", "schema": SCHEMA, "slice_by": "intent"})
LABEL = AnswerFormat(format="label", labels=("refund", "delivery"))
ROW = example("r", "where is it", '{"intent": "delivery", "order": null, "n": 1}')


def scored(text: str) -> Score:
    return score(ROW, Answer("r", "tuned", text), JSON)


def test_same_meaning_is_exact_whatever_the_spelling() -> None:
    assert scored('{"n":1.0, "order": null,\n"intent": "delivery"}').exact
    assert not scored('{"n": true, "order": null, "intent": "delivery"}').exact


def test_fields_count_also_where_the_schema_is_broken() -> None:
    found = scored('{"intent": "delivry", "order": null}')
    assert (found.exact, found.valid) == (False, False)
    assert found.fields == {"intent": False, "order": True, "n": False}


def test_what_is_no_json_has_no_right_field() -> None:
    found = scored("I would say delivery")
    assert not found.valid
    assert found.fields == {"intent": False, "order": False, "n": False}


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"intent": "delivery", "order": null, "n": 1}\n```',
        'Here it is: {"n": 1.0, "intent": "Delivery", "order": null}',
    ],
)
def test_a_fence_or_a_word_around_it_is_no_wrong_answer(text: str) -> None:
    """What cleaning repairs in a person's answer must not count against a model; the strict form is reported beside."""
    found = scored(text)
    assert (found.exact, found.valid) == (True, text.startswith("{"))
    assert found.fields == {"intent": True, "order": True, "n": True}


@pytest.mark.parametrize("variant_", ["zero_shot", "few_shot", "few_shot_retrieved", "classical", "tuned", "champion"])
def test_every_variant_is_read_alike(variant_: str) -> None:
    row = example("l", "q", "refund")
    for text in ("Refund", "refund.", '"refund"'):
        found = score(row, Answer("l", variant_, text), LABEL)
        assert (found.exact, found.valid) == (True, False)
    assert not score(row, Answer("l", variant_, "Delivery."), LABEL).exact


def test_slices() -> None:
    assert scored("").slice == "delivery"
    assert LABEL.slice_of("refund") == "refund"
    assert JSON.slice_of('{"intent": null}') == "null"
    assert AnswerFormat().slice_of("free text") == ""


def test_labels_and_texts() -> None:
    row = example("l", "q", "refund")
    assert score(row, Answer("l", "tuned", " refund\n"), LABEL).exact
    assert score(example("t", "q", "Hello."), Answer("t", "tuned", "Hello. "), AnswerFormat()).exact


def test_the_figures_of_a_variant() -> None:
    scores = [
        Score("a", "tuned", True, True, {"f": True}, "x"),
        Score("b", "tuned", False, True, {"f": True}, "x"),
        Score("c", "tuned", False, False, {"f": False}, "y"),
    ]
    answers = [Answer(s.id, "tuned", "", 10, 4 + i, 0.5, i > 0) for i, s in enumerate(scores)]
    figures = variant(scores, answers)
    assert (figures["rows"], figures["exact"], figures["valid"]) == (3, 0.333333, 0.666667)
    assert figures["fields"] == {"f": 0.666667}
    slices = figures["slices"]
    assert isinstance(slices, dict)
    assert slices["x"]["exact"] == 0.5
    assert slices["y"]["rows"] == 1
    assert (figures["prompt_tokens"], figures["completion_tokens"], figures["finished"]) == (10, 5, 0.666667)


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    assert interval(0, 0) == [0.0, 1.0]
    assert interval(0, 10)[0] == 0.0
    assert interval(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10), abs=1e-4)
    assert interval(95, 100) == [0.887165, 0.983568]


def test_the_best_prompt_is_the_simplest_of_equals() -> None:
    variants = {"classical": 0.9, "zero_shot": 0.1, "few_shot": 0.2}
    assert best_prompted(variants) == "few_shot"
    assert best_prompted(variants | {"zero_shot": 0.2}) == "zero_shot"
    assert best_prompted({"classical": 0.9}) is None
