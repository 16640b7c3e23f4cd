"""The parity gate: how answers are compared, and when it passes."""

from __future__ import annotations

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.serve.parity import ParityResult, ParityRow, answers_equal, compare, evaluate_parity
from finetune_pipeline_tests.serve.deployment import TEST


def test_answers_are_compared_by_value() -> None:
    answer_format = AnswerFormat(format="json", json_schema={"type": "object"})
    assert answers_equal('{"a": 1, "b": null}', '{"b":null,"a":1}', answer_format)
    assert not answers_equal('{"a": 1}', '{"a": "1"}', answer_format)
    assert answers_equal("broken {", " broken {", answer_format) and not answers_equal(
        "broken {", "broken [", answer_format
    )
    assert not answers_equal('{"a": 1}', "a", answer_format)


def test_a_share_below_the_threshold_is_not_shown_as_the_threshold() -> None:
    rows = [ParityRow(str(i), i < 193, "a", "a", True, True) for i in range(199)]  # 96.98 %
    check, _ = evaluate_parity(ParityResult(tuple(rows), 1, 1), 0.97, "x").checks
    assert (check.passed, check.expected) == (False, "at least 97 % of the replayed rows")
    assert check.observed == "193 of 199 (96.9 %)"


def test_parity_passes_at_the_threshold() -> None:
    answer_format = AnswerFormat()
    evaluated = {row.id: "a" for row in TEST}
    served = {**evaluated, TEST[0].id: "b"}
    result = compare(TEST, served, evaluated, {TEST[1].id: "c"}, answer_format)
    assert (
        result.share == pytest.approx(11 / 12) and result.served_exact == result.share and result.evaluated_exact == 1.0
    )
    assert evaluate_parity(result, 11 / 12, "x").passed
    failed = evaluate_parity(result, 0.97, "x")
    assert not failed.passed and TEST[0].id in failed.summary
    assert not evaluate_parity(compare(TEST, evaluated, evaluated, {TEST[1].id: "a"}, answer_format), 0.97, "x").passed


def test_a_gate_that_fails_in_bf16_names_the_precision() -> None:
    rows = tuple(ParityRow(str(i), i < 9, "a", "a", True, True) for i in range(10))
    assert "serve.precision: fp32" in evaluate_parity(ParityResult(rows, 1, 1), 0.97, "x", "bf16").summary
    assert "serve.precision" not in evaluate_parity(ParityResult(rows, 1, 1), 0.97, "x", "fp32").summary
    without_effect = evaluate_parity(ParityResult(rows, 1, 0), 0.5, "x", "bf16")
    assert not without_effect.passed and "serve.precision" not in without_effect.summary
