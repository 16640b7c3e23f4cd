"""Facts about the rows: counts, token means, and JSON fields with few values."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.suitability.facts import closed_fields, collect_facts
from finetune_pipeline_tests.artifacts import example, task

SCHEMA = {"type": "object", "properties": {"intent": {"type": "string"}, "order": {"type": "integer"}}}
JSON = AnswerFormat(format="json", json_schema=SCHEMA)


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def test_rows_are_counted_and_tokens_averaged() -> None:
    rows = [example("a", "one two three", "yes it is"), example("b", "one", "yes it is"), example("c", "one two", "no")]
    declared = task(prompt={"system": "answer in short"})
    facts = collect_facts(rows, 10, {"contradiction": 4, "exact-duplicate": 3}, declared, words)
    assert (facts.raw, facts.usable, facts.contradictory, facts.distinct_completions) == (10, 3, 4, 2)
    assert facts.system_tokens == 3
    assert facts.prompt_tokens == 2
    assert facts.completion_tokens == pytest.approx(7 / 3)
    assert facts.few_shot_prompt_tokens == pytest.approx(3 + 2 + 4 * (2 + 7 / 3))
    three = collect_facts(rows, 10, {}, task(prompt={"system": "answer in short"}, baseline={"shots": 3}), words)
    assert three.few_shot_prompt_tokens == pytest.approx(3 + 2 + 3 * (2 + 7 / 3))


def test_without_rows_all_means_are_0() -> None:
    facts = collect_facts([], 10, {}, task(), words)
    assert (facts.usable, facts.prompt_tokens, facts.few_shot_prompt_tokens) == (0, 0, 0)


def test_fields_with_few_values_are_counted_as_closed() -> None:
    completions = [f'{{"intent": "i{i % 5}", "order": {i}}}' for i in range(60)]
    assert closed_fields([*completions, "no json"], JSON) == (1, 2)
    assert closed_fields(["yes"], AnswerFormat()) == (0, 0)
