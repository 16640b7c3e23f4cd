"""The Great Expectations suite, built from the declaration, and its run over the table of `rules.py`.

    frame = rules.table(examples, task, dropped=103, read={"shop": Reading(877, 17)})
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
from finetune_pipeline.quality.gate import percent
from finetune_pipeline.quality.rules import ROW_OK, SHARE_DROPPED, UNREADABLE, limits, rules_of

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

    rules, q, broken = rules_of(task), task.quality, limits(task)
    shares = [SHARE_DROPPED, *(UNREADABLE + name for name in broken)]
    columns = ["id", "prompt_chars", "completion_chars", *(rule.name for rule in rules), ROW_OK, *shares]
    most = f", in at least {percent(q.mostly)} of the rows"

    def holds(name: str, says: str) -> Any:
        return gxe.ExpectColumnValuesToBeInSet(
            column=name, value_set=[True], mostly=q.mostly, description=says + most, meta={"name": name}
        )

    def present(name: str, column: str, says: str, mostly: float = 1.0) -> Any:
        return gxe.ExpectColumnValuesToNotBeNull(column=column, mostly=mostly, description=says, meta={"name": name})

    def at_most(name: str, most: float, says: str) -> Any:
        return gxe.ExpectColumnMaxToBeBetween(column=name, max_value=most, description=says, meta={"name": name})

    checks = [
        holds(ROW_OK, "all rules hold"),
        present("every_row_judged", ROW_OK, "every row was judged"),
        gxe.ExpectTableRowCountToBeBetween(
            min_value=q.min_rows, description=f"at least {q.min_rows:,} rows are left", meta={"name": "enough_rows"}
        ),
        at_most(
            SHARE_DROPPED, q.max_dropped, f"reading and cleaning dropped at most {percent(q.max_dropped)} of all rows"
        ),
        *(
            at_most(UNREADABLE + name, most, f"at most {percent(most)} of the rows of {name} could not be read")
            for name, most in broken.items()
        ),
        gxe.ExpectTableColumnsToMatchSet(
            column_set=columns,
            exact_match=False,
            description="the table has every column that is judged",
            meta={"name": "columns_present"},
        ),
        present("id_present", "id", "every row has an id"),
        gxe.ExpectColumnValuesToBeUnique(column="id", description="no id is used twice", meta={"name": "id_unique"}),
        present("prompt_present", "prompt_chars", "there is a question" + most, q.mostly),
        present("completion_present", "completion_chars", "there is an answer" + most, q.mostly),
        *(holds(rule.name, rule.says) for rule in rules),
    ]
    return gx.ExpectationSuite(name=NAME, expectations=checks)


def check_names(task: Task) -> tuple[str, ...]:
    """The names of the checks that `build` gives, in its order; without Great Expectations, which takes seconds."""
    unreadable = (UNREADABLE + name for name in limits(task))
    head = (ROW_OK, "every_row_judged", "enough_rows", SHARE_DROPPED, *unreadable, "columns_present")
    rules = (rule.name for rule in rules_of(task))
    return (*head, "id_present", "id_unique", "prompt_present", "completion_present", *rules)


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
    faults = [
        f"{each.expectation_config.meta['name']} ({fault})"
        for each in result.results
        if (fault := _fault(each.exception_info)) is not None
    ]
    if faults:
        raise DataError(
            "the quality gate could not evaluate " + "; ".join(faults),
            f"the table has the columns {', '.join(columns)}; clean_examples is incomplete or made by another version: "
            "make it again",
        )


def _fault(info: dict[str, Any]) -> str | None:
    """The message of what was raised: `info` tells it itself, or holds a dict of the same form for each metric."""
    told = (info, *(each for each in info.values() if isinstance(each, dict)))
    return next((str(each["exception_message"]) for each in told if each.get("raised_exception")), None)
