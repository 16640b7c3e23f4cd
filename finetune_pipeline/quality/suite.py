"""Two Great Expectations suites, built from the declaration, and their run over the table of rows.

    checked = run(frame_of(examples, task), task, Losses.of(task, 3, dropped=103, read={}), "3fa9…")
    checked.row_ok            # a bool for each row
    checked.results           # Great Expectations' own results, in the order of the report

`mostly=0.95` alone is not "95 % of the rows": it passes for an empty table, it does not count nulls, and two
expectations may fail on different rows. So the first suite holds the rules and what the declaration adds; the rows that
any of them names, and those with a null in a column that it reads, are not `row_ok`. The second suite requires the
declared share of `row_ok`, enough rows, and few enough losses. The expectations for single rules cannot fail while
`row_ok` passes; they show which rule fails.

What it is not: the verdict (gate.py). Importing Great Expectations takes seconds: only inside functions.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.quality.losses import SHARE_DROPPED, UNREADABLE, Losses
from finetune_pipeline.quality.rules import NOT_NULL, ROW_OK, Rule, declared_name, rules_of
from finetune_pipeline.statistics.formatting import percent_down

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.core import ExpectationSuiteValidationResult
    from pandas import DataFrame, Series

# The rows that are not right by their place in the table, and never a value of theirs.
RESULT_FORMAT = {
    "result_format": "COMPLETE",
    "partial_unexpected_count": 0,
    "exclude_unexpected_values": True,
    "return_unexpected_index_query": False,
}
EVERY_ROW_CHECKED, ENOUGH_ROWS = "every_row_checked", "enough_rows"
ID_PRESENT, ID_UNIQUE = "id_present", "id_unique"
_REGISTRY = Lock()  # Great Expectations' registry is one for the process, and custom expectations have a task's rules


@dataclass(frozen=True, slots=True)
class Checked:
    """What Great Expectations found. `broken` has a column of bools for each expectation about single rows, by its
    name: True where a row does not meet it. `rules` are the names of those that make up `row_ok`."""

    suites: tuple[ExpectationSuiteValidationResult, ...]
    broken: DataFrame
    rules: tuple[str, ...]
    row_ok: Series

    @property
    def results(self) -> list[Any]:
        """First what the verdict is about, then the rules and the declared expectations."""
        rows, table = self.suites
        return [*table.results, *rows.results]


def run(frame: DataFrame, task: Task, losses: Losses, run_name: str, rules: Sequence[Rule] | None = None) -> Checked:
    """Check the table. DataError when an expectation could not be evaluated at all (a missing column, say): that is a
    fault of the program that made the table, and says nothing about the rows. DeclarationError for a declared
    expectation that Great Expectations does not know."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when Great Expectations is imported
    rules = rules_of(task) if rules is None else rules
    with _REGISTRY:
        row_suite = suite_of_rows(task, rules)
        rows = _validate(frame, row_suite, run_name)
    broken = _broken(rows, frame, rules)
    counted = (*(rule.name for rule in rules), *_strict(row_suite, broken, task.quality.mostly))
    row_ok = ~broken[list(counted)].any(axis=1)
    table = _validate(_summary(frame, row_ok, losses), suite_of_table(task, losses), run_name)
    return Checked((rows, table), broken, counted, row_ok)


def check_names(task: Task) -> tuple[str, ...]:
    """The names of the gate's checks, in the order of `Checked.results`; known without importing Great Expectations."""
    unreadable = (UNREADABLE + source.label for source in task.sources)
    table = (ROW_OK, EVERY_ROW_CHECKED, ENOUGH_ROWS, SHARE_DROPPED, *dict.fromkeys(unreadable), ID_PRESENT, ID_UNIQUE)
    declared = (declared_name(number, each.type) for number, each in enumerate(task.quality.expectations))
    return (*table, *(rule.name for rule in rules_of(task)), *declared)


def suite_of_rows(task: Task, rules: Sequence[Rule]) -> ExpectationSuite:
    """An expectation for each rule, and those of the declaration. Descriptions are what people read."""
    import great_expectations as gx

    from finetune_pipeline.quality.expectations import declared, expectation

    q = task.quality
    most = f", in at least {percent_down(q.mostly)} of the rows"
    own = [expectation(rule, q.mostly, rule.description + most) for rule in rules]
    return gx.ExpectationSuite(name="rows", expectations=[*own, *declared(task)])


def suite_of_table(task: Task, losses: Losses) -> ExpectationSuite:
    """What has to hold of all rows together."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    q = task.quality

    def about(name: str, description: str) -> dict[str, Any]:
        return {"description": description, "meta": {"name": name}}

    def at_most(name: str, most: float, description: str) -> Any:
        return gxe.ExpectColumnMaxToBeBetween(column=name, max_value=most, **about(name, description))

    right = about(ROW_OK, f"every rule holds, in at least {percent_down(q.mostly)} of the rows")
    enough = about(ENOUGH_ROWS, f"at least {q.min_rows:,} rows are left")
    lost = f"reading and cleaning dropped at most {percent_down(q.max_dropped)} of all rows"
    checks = [
        gxe.ExpectColumnValuesToBeInSet(column=ROW_OK, value_set=[True], mostly=q.mostly, **right),
        gxe.ExpectColumnValuesToNotBeNull(column=ROW_OK, **about(EVERY_ROW_CHECKED, "every row was checked")),
        gxe.ExpectTableRowCountToBeBetween(min_value=q.min_rows, **enough),
        at_most(SHARE_DROPPED, q.max_dropped, lost),
        *(
            at_most(UNREADABLE + name, most, f"at most {percent_down(most)} of the rows of {name} could not be read")
            for name, most in losses.limits.items()
        ),
        gxe.ExpectColumnValuesToNotBeNull(column="id", **about(ID_PRESENT, "every row has an id")),
        gxe.ExpectColumnValuesToBeUnique(column="id", **about(ID_UNIQUE, "no id is used twice")),
    ]
    return gx.ExpectationSuite(name="table", expectations=checks)


def _summary(frame: DataFrame, row_ok: Series, losses: Losses) -> DataFrame:
    """The table without texts: id, `row_ok`, and the losses, the same in every row."""
    return frame[["id"]].assign(**{ROW_OK: row_ok}, **losses.columns())


def _validate(frame: DataFrame, suite: ExpectationSuite, run_name: str) -> ExpectationSuiteValidationResult:
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    source = context.data_sources.add_pandas(name="pipeline")
    batch = source.add_dataframe_asset(suite.name).add_batch_definition_whole_dataframe("whole")
    order = [each.meta["name"] for each in suite.expectations]
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=suite.name, data=batch, suite=context.suites.add(suite))
    )
    result = definition.run(
        batch_parameters={"dataframe": frame}, result_format=RESULT_FORMAT, run_id=gx.RunIdentifier(run_name=run_name)
    )
    result.results.sort(key=lambda each: order.index(name_of(each)))  # Great Expectations' order is that of columns
    _raise_faults(result, list(frame.columns))
    return result


def name_of(result: Any) -> str:
    """The name of an expectation in reports: the rule's, or `declared:0:expect_…`."""
    return str(result.expectation_config.meta["name"])


def _broken(result: ExpectationSuiteValidationResult, frame: DataFrame, rules: Sequence[Rule]) -> DataFrame:
    """A column of bools for each expectation about single rows. A null in a column that a rule reads breaks the rule,
    unless another rule is that there is none: to Great Expectations it is a row that it need not look at."""
    import pandas as pd

    required = {column for rule in rules if rule.built_in == NOT_NULL for column in rule.columns}
    reads = {rule.name: [column for column in rule.columns if column not in required] for rule in rules}
    broken = {}
    for each in result.results:
        name, found = name_of(each), each.result.get("unexpected_index_list")
        if found is not None:
            nulls = frame[reads.get(name, [])].isna().any(axis=1)
            broken[name] = frame.index.isin(found) | nulls.to_numpy(dtype=bool)
    return pd.DataFrame(broken, index=frame.index, dtype=bool)


def _strict(suite: ExpectationSuite, broken: DataFrame, mostly: float) -> list[str]:
    """The declared expectations that are rules: critical, about single rows, for at least the gate's share of them."""
    return [
        name
        for each in suite.expectations
        if (name := each.meta["name"]).startswith("declared:")
        and name in broken
        and each.severity.value == "critical"
        and each.mostly >= mostly
    ]


def _raise_faults(result: ExpectationSuiteValidationResult, columns: list[str]) -> None:
    """DataError for an expectation that could not be evaluated: Great Expectations reports a missing column, for one,
    as a failed expectation with a traceback inside."""
    faults = [
        f"{name_of(each)} ({fault})" for each in result.results if (fault := _fault(each.exception_info)) is not None
    ]
    if faults:
        raise DataError(
            "the quality gate could not evaluate " + "; ".join(faults),
            f"the table has the columns {', '.join(columns)}; clean_examples is incomplete or made by another version: "
            "materialize it again (or an expectation of `quality.expectations` does not fit its column)",
        )


def _fault(info: Mapping[str, Any]) -> str | None:
    """The message of what was raised: `info` holds it, or a dict of the same form for each metric."""
    infos = (info, *(each for each in info.values() if isinstance(each, dict)))
    return next((str(each["exception_message"]) for each in infos if each.get("raised_exception")), None)
