"""Metrics on answers that are right, wrong or malformed, and the figures of a variant."""

from __future__ import annotations

import pytest

from finetune_pipeline.baseline.figures import best_prompted, interval, variant_figures
from finetune_pipeline.baseline.metrics import METRICS, Metric, score
from finetune_pipeline.config import AnswerFormat
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


def test_an_answer_of_the_same_meaning_is_exact() -> None:
    assert scored('{"n":1.0, "order": null,\n"intent": "delivery"}').exact
    assert not scored('{"n": true, "order": null, "intent": "delivery"}').exact


def test_fields_are_compared_also_where_the_schema_is_broken() -> None:
    result = scored('{"intent": "delivry", "order": null}')
    assert (result.exact, result.valid) == (False, False)
    assert result.fields == {"intent": False, "order": True, "n": False}


def test_an_answer_that_is_no_json_has_no_right_field() -> None:
    result = scored("I would say delivery")
    assert not result.valid
    assert result.fields == {"intent": False, "order": False, "n": False}


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"intent": "delivery", "order": null, "n": 1}\n```',
        'Here it is: {"n": 1.0, "intent": "Delivery", "order": null}',
    ],
)
def test_a_fence_or_words_around_the_object_do_not_count(text: str) -> None:
    """A form that cleaning fixes in a completion must not count against a model; `valid` is strict."""
    result = scored(text)
    assert (result.exact, result.valid) == (True, text.startswith("{"))
    assert result.fields == {"intent": True, "order": True, "n": True}


@pytest.mark.parametrize("variant", ["zero_shot", "few_shot", "few_shot_retrieved", "classical", "tuned", "champion"])
def test_every_variant_is_read_by_the_same_rules(variant: str) -> None:
    row = example("l", "q", "refund")
    for text in ("Refund", "refund.", '"refund"'):
        result = score(row, Answer("l", variant, text), LABEL)
        assert (result.exact, result.valid) == (True, False)
    assert not score(row, Answer("l", variant, "Delivery."), LABEL).exact


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
    rows = {s.id: example(s.id, "q", "text") for s in scores}
    answers = [Answer(s.id, "tuned", "", 10, 4 + i, 0.5, i > 0) for i, s in enumerate(scores)]
    figures = variant_figures(rows, answers, scores, AnswerFormat())
    assert (figures["rows"], figures["exact"], figures["valid"]) == (3, 0.333333, 0.666667)
    assert figures["fields"] == {"f": 0.666667}
    assert figures["slices"]["x"]["exact"] == 0.5
    assert figures["slices"]["y"]["rows"] == 1
    assert (figures["prompt_tokens"], figures["completion_tokens"], figures["finished"]) == (10, 5, 0.666667)
    assert figures["metrics"] == {}  # macro F1 is for labels


def test_macro_f1_weighs_every_label_the_same() -> None:
    """Refund: precision 2/3, recall 1; delivery: precision 1, recall 1/2. No label of the completions is left out."""
    completions = ["refund", "refund", "delivery", "delivery"]
    answers = ["Refund.", "refund", "refund", "delivery"]
    (macro_f1,) = (metric for metric in METRICS if metric.name == "macro_f1")
    assert macro_f1.figure(completions, answers, LABEL) == pytest.approx((0.8 + 2 / 3) / 2)
    assert macro_f1.figure(completions, ["no idea"] * 4, LABEL) == 0.0
    assert macro_f1.figure([], [], LABEL) == 0.0


def test_a_metric_of_the_table_is_in_the_figures_of_every_variant() -> None:
    words = Metric("words", "Words", lambda completion, answer, spec: len(answer.split()), higher_is_better=False)
    rows = {"a": example("a", "q", "one two"), "b": example("b", "q", "one")}
    answers = [Answer("a", "tuned", "one"), Answer("b", "tuned", "one two")]
    figures = variant_figures(rows, answers, [], AnswerFormat(), [*METRICS, words])
    assert figures["metrics"] == {"words": 1.5}
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_intervals_are_those_of_clopper_and_pearson() -> None:
    assert interval(0, 0) == [0.0, 1.0]
    assert interval(0, 10)[0] == 0.0
    assert interval(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10), abs=1e-4)
    assert interval(95, 100) == [0.887165, 0.983568]


def test_of_equal_prompts_the_simplest_is_the_best() -> None:
    variants = {"classical": 0.9, "zero_shot": 0.1, "few_shot": 0.2}
    assert best_prompted(variants) == "few_shot"
    assert best_prompted(variants | {"zero_shot": 0.2}) == "zero_shot"
    assert best_prompted({"classical": 0.9}) is None
