"""The Great Expectations suite, built from the declaration, and its run over the table of `rules.py`.

    frame = rules.table(examples, task, dropped=103)
    result = run(frame, task, "3fa9…")          # Great Expectations' own result, for verdict.py and docs.py

`mostly=0.95` alone is not "95 % of the rows": it passes for an empty table, it does not count nulls, and two
expectations may fail on different rows. So one expectation counts the rows that are right in every respect (`row_ok`),
and others see to it that there are enough rows and no nulls that could hide from it. The
expectations for the single rules cannot fail while that one passes; they say where the trouble lies.

What it is not: the decision (verdict.py). Importing Great Expectations takes seconds: only inside functions.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.gates.rules import ROW_OK, SHARE_DROPPED, rules_of
from finetune_pipeline.gates.verdict import percent

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.core import ExpectationSuiteValidationResult
    from pandas import DataFrame

NAME = "cleaned_rows"
# Counts only: with any other format the values that failed would stand in the report.
RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": 0}


def build(task: Task) -> ExpectationSuite:
    """The suite of a task. Descriptions are what people read, in the report as in the verdict."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    rules, q = rules_of(task), task.quality
    columns = ["id", "question_chars", "answer_chars", *(rule.name for rule in rules), ROW_OK, SHARE_DROPPED]
    checks: list[Any] = [
        gxe.ExpectColumnValuesToBeInSet(
            column=ROW_OK, value_set=[True], mostly=q.mostly, description="every row is right in every respect"
        ),
        gxe.ExpectColumnValuesToNotBeNull(column=ROW_OK, description="every row was judged"),
        gxe.ExpectTableRowCountToBeBetween(min_value=q.min_rows, description=f"at least {q.min_rows:,} rows are left"),
        gxe.ExpectTableColumnsToMatchSet(
            column_set=columns, exact_match=False, description="the table has every column that is judged"
        ),
        gxe.ExpectColumnMaxToBeBetween(
            column=SHARE_DROPPED,
            max_value=q.max_dropped,
            description=f"cleaning dropped at most {percent(q.max_dropped)} of the rows",
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="id", description="every row has an id"),
        gxe.ExpectColumnValuesToBeUnique(column="id", description="no id is used twice"),
    ]
    for part in ("question", "answer"):
        checks.append(
            gxe.ExpectColumnValuesToNotBeNull(
                column=f"{part}_chars", mostly=q.mostly, description=f"every row has {_article(part)} {part}"
            )
        )
    for rule in rules:
        checks.append(
            gxe.ExpectColumnValuesToBeInSet(
                column=rule.name, value_set=[True], mostly=q.mostly, description=rule.says
            )
        )
    return gx.ExpectationSuite(name=NAME, expectations=checks)


def run(frame: DataFrame, task: Task, run_name: str) -> ExpectationSuiteValidationResult:
    """Judge the table. DataError when an expectation could not be evaluated at all (a missing column, say): that is a
    fault of the program that made the table, and says nothing about the rows."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when Great Expectations is imported
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas(name="pipeline")
    batch = source.add_dataframe_asset(NAME).add_batch_definition_whole_dataframe("whole")
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=NAME, data=batch, suite=context.suites.add(build(task)))
    )
    result = definition.run(
        batch_parameters={"dataframe": frame},
        result_format=RESULT_FORMAT,
        run_id=gx.RunIdentifier(run_name=run_name),
    )
    _raise_faults(result, list(frame.columns))
    return result


def _raise_faults(result: ExpectationSuiteValidationResult, columns: list[str]) -> None:
    """Great Expectations reports a missing column as a failed expectation with a traceback inside: tell it apart."""
    faults = [f"{_name(each)}: {_message(each.exception_info)}" for each in result.results if _raised(each.exception_info)]
    if faults:
        raise DataError(
            "the quality gate could not evaluate " + "; ".join(sorted(set(faults))),
            f"the table has the columns {', '.join(columns)}; clean_examples is incomplete or made by another version: "
            "make it again",
        )


def _name(each: Any) -> str:
    return f"`{each.expectation_config.kwargs.get('column', 'the table')}`"


def _raised(info: dict[str, Any]) -> bool:
    return bool(info.get("raised_exception")) or any(isinstance(v, dict) and v["raised_exception"] for v in info.values())


def _message(info: dict[str, Any]) -> str:
    if info.get("raised_exception"):
        return str(info["exception_message"])
    return next(str(v["exception_message"]) for v in info.values() if isinstance(v, dict) and v["raised_exception"])


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"
