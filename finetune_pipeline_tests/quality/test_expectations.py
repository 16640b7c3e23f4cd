"""Expectations of the declaration: what is refused, what is run, what decides."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from finetune_pipeline.errors import DeclarationError
from finetune_pipeline.quality import expectations, report
from finetune_pipeline.quality.rules import Rule, each, rules_of
from finetune_pipeline.records import Verdict
from finetune_pipeline_tests.quality.conftest import check, declare, row, rows, verdict

REGEX = "expect_column_values_to_match_regex"


def with_expectations(*given: dict[str, Any], **quality: Any) -> Any:
    return declare(quality={"min_rows": 10, "expectations": list(given), **quality})


def named(given: Verdict, number: int) -> Any:
    return next(check for check in given.checks if check.name.startswith(f"declared:{number}:"))


def test_problems_have_key_value_and_hint() -> None:
    task = with_expectations(
        {"type": "expect_column_values_to_match_regexp", "kwargs": {"column": "prompt", "regex": "x"}},
        {"type": REGEX, "kwargs": {"column": "promt", "regex": "("}},
        {"type": REGEX, "kwargs": {"column": "prompt", "pattern": "x"}},
        {"type": "expect_column_value_lengths_to_be_between", "kwargs": {"column": "prompt", "min_value": "ten"}},
        {"type": "expect_column_values_to_match_like_pattern", "kwargs": {"column": "prompt", "like_pattern": "x%"}},
        {"type": REGEX, "kwargs": {"column": "field.intent", "regex": "^r"}},
    )
    problems = expectations.problems(task)
    assert any(
        "expectations.0.type: no expectation for a table in memory is called "
        f"expect_column_values_to_match_regexp. Did you mean {REGEX}?" in one
        for one in problems
    )
    assert any(
        "expectations.1.kwargs.column: there is no column 'promt'. Did you mean prompt?" in one for one in problems
    )
    assert any("expectations.1.kwargs.regex: '(' is no regular expression" in one for one in problems)
    assert any("expectations.2.kwargs.pattern: extra fields not permitted (it is 'x')" in one for one in problems)
    assert any("takes column, mostly, row_condition, condition_parser, regex" in one for one in problems)
    assert any("expectations.3.kwargs.min_value: value is not a valid integer (it is 'ten')" in one for one in problems)
    assert any("expectations.4.type: no expectation for a table in memory" in one for one in problems)
    assert not any("expectations.5" in one for one in problems)
    with pytest.raises(DeclarationError) as error:
        check(rows(20), task)
    assert error.value.problems == tuple(problems)


def test_what_can_be_seen_without_great_expectations_is_refused_with_the_declaration() -> None:
    with pytest.raises(DeclarationError) as error:
        with_expectations(
            {"type": "ExpectColumnToExist", "kwargs": {"column": "prompt"}},
            {"type": REGEX, "kwargs": {"result_format": "COMPLETE"}},
            {"type": REGEX, "severity": "fatal"},
        )
    problems = "\n".join(error.value.problems)
    assert "quality.expectations.0.type" in problems and "ExpectColumnToExist" in problems
    assert "quality.expectations.1.kwargs: result_format is no argument of an expectation" in problems
    assert "quality.expectations.2.severity: Input should be 'critical' or 'warning' (it is 'fatal')" in problems


def test_no_declared_expectation_imports_no_great_expectations() -> None:
    code = (
        "import sys; from finetune_pipeline_tests.quality.conftest import declare; "
        "from finetune_pipeline.quality import expectations; assert expectations.problems(declare()) == []; "
        "sys.exit('great_expectations' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_critical_expectation_fails_the_gate_and_a_warning_does_not() -> None:
    expectation = {"type": REGEX, "kwargs": {"column": "prompt", "regex": "lamp"}, "description": "about a lamp"}
    critical = verdict(rows(100), with_expectations(expectation))
    assert not critical.passed and not named(critical, 0).passed and named(critical, 0).severity == "error"
    warning = verdict(rows(100), with_expectations(expectation | {"severity": "warning"}))
    assert warning.passed and not named(warning, 0).passed and named(warning, 0).severity == "warning"
    assert warning.summary == (
        "100 % of 100 rows pass every rule, 95 % required; warning: about a lamp: 0 % of 100 rows"
    )


def test_a_critical_expectation_of_all_rows_is_a_rule() -> None:
    """95 rows meet each, but only 90 meet both: what is declared adds up with the rules."""
    kwargs: dict[str, Any] = {"column": "prompt", "regex": "^where"}
    mixed = [*rows(95, bad=5), *(row(n, prompt=f"lamp number {chr(n)} broke") for n in range(97, 102))]
    given = verdict(mixed, with_expectations({"type": REGEX, "kwargs": kwargs | {"mostly": 0.95}}))
    assert named(given, 0).passed and not given.passed
    assert given.figures["right"] == 90
    half = verdict(mixed, with_expectations({"type": REGEX, "kwargs": kwargs | {"mostly": 0.5}}))
    assert half.passed and half.figures["right"] == 95


def test_an_expectation_of_the_whole_column_and_its_own_words() -> None:
    mean = {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "prompt_chars", "min_value": 1000}}
    given = verdict(rows(100), with_expectations(mean))
    assert not given.passed
    assert "mean must be greater than or equal to 1000" in named(given, 0).expected
    assert float(named(given, 0).observed) < 30


def test_declared_fields_can_be_checked() -> None:
    in_set = {
        "type": "expect_column_values_to_be_in_set",
        "kwargs": {"column": "field.intent", "value_set": ["refund"]},
    }
    assert verdict(rows(100), with_expectations(in_set)).passed
    other = [*rows(99), row(99, completion='{"intent": "delivery"}')]
    assert not verdict(other, with_expectations(in_set)).passed


def test_texts_of_rows_do_not_get_into_stored_results() -> None:
    secret = [row(n, prompt=f"a swordfish {chr(n)}") for n in range(97, 122)]
    task = with_expectations(
        {"type": REGEX, "kwargs": {"column": "prompt", "regex": "^x"}},
        {"type": "expect_column_most_common_value_to_be_in_set", "kwargs": {"column": "prompt", "value_set": ["x"]}},
        {"type": "expect_column_distinct_values_to_be_in_set", "kwargs": {"column": "prompt", "value_set": ["x"]}},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "completion"}},
    )
    checked, given = check(secret, task), verdict(secret, task)
    stored = json.dumps(report.plain(checked)) + json.dumps(given.to_json())
    assert "swordfish" not in stored and "(25 values)" in stored
    assert "refund" not in json.dumps(
        [each["result"] for suite in report.plain(checked)["suites"] for each in suite["results"]]
    )


def test_built_in_expectations_are_used() -> None:
    types = {
        each.expectation_config.meta["name"]: each.expectation_config.type
        for each in check(rows(20), declare()).results
    }
    assert types["prompt_fits"] == "expect_column_value_lengths_to_be_between"
    assert types["prompt_present"] == "expect_column_values_to_not_be_null"
    assert types["roles_in_order"] == REGEX
    assert types["prompt_unique"] == "expect_column_values_to_be_unique"
    assert types["no_personal_data"] == "expect_no_personal_data"


def test_a_rule_is_one_function() -> None:
    from finetune_pipeline.quality import suite
    from finetune_pipeline.quality.losses import Losses
    from finetune_pipeline.quality.table import frame_of

    task = declare()
    quiet = Rule("no_shouting", "the prompt is not all capitals", ("prompt",), each(lambda text: not text.isupper()))
    examples = [*rows(19), row(19, prompt="WHERE IS IT")]
    losses = Losses.of(task, 20, 0, {})
    checked = suite.run(frame_of(examples, task), task, losses, "test", (*rules_of(task), quiet))
    assert checked.row_ok.tolist() == [True] * 19 + [False]
    assert checked.broken["no_shouting"].sum() == 1
