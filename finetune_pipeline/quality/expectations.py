"""Great Expectations' side of the gate: an expectation for each rule, and those that the declaration asks for.

    expectation(rule, mostly=0.95)        # gxe.ExpectColumnValueLengthsToBeBetween(...), or one of our own
    declared(task)                        # those of `quality.expectations`
    problems(task)                        # what is wrong with them: key, value, hint

A rule with a function of its own becomes a custom expectation: a subclass of ColumnMapExpectation (one column) or
ColumnPairMapExpectation (two) with a metric for pandas, registered as `expect_<rule>`. Great Expectations' registry is
one for the process: who builds a suite runs it before the next one is built (suite.py holds a lock).

Importing Great Expectations takes seconds: only inside functions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from string import Template
from typing import Any

from finetune_pipeline.config import DeclaredExpectation, Task
from finetune_pipeline.config.quality import RESERVED
from finetune_pipeline.errors import DeclarationError
from finetune_pipeline.quality.rules import Rule, declared_name
from finetune_pipeline.quality.table import columns_for_teams

COLUMNS = ("column", "column_A", "column_B", "column_list")  # the kwargs that name columns
_REGEX = ("regex", "regex_list")


def expectation(rule: Rule, mostly: float, description: str) -> Any:
    """The expectation of one rule, with `description` in reports."""
    kwargs = dict(zip(("column",) if len(rule.columns) == 1 else ("column_A", "column_B"), rule.columns, strict=True))
    kind = implementation(rule.built_in) if rule.built_in else custom(rule)
    return kind(**kwargs, **rule.kwargs, mostly=mostly, description=description, meta={"name": rule.name})


def implementation(type_: str) -> Any:
    """Great Expectations' class of this name. KeyError where there is none, or none that checks a table in memory."""
    import great_expectations.expectations as gxe

    name = "".join(word.title() for word in type_.split("_"))
    names = {known.lower(): known for known in vars(gxe)}  # ExpectColumnKLDivergenceToBeLessThan
    found = getattr(gxe, names[name.lower()])
    sources = found.schema()["properties"].get("metadata", {}).get("properties", {}).get("supported_data_sources")
    if sources is not None and "Pandas" not in sources["const"]:
        raise KeyError(type_)
    return found


def custom(rule: Rule) -> Any:
    """A new expectation class for this rule, as Great Expectations' documentation makes one."""
    with _redefining():
        return _column_map(rule) if len(rule.columns) == 1 else _column_pair_map(rule)


def _column_map(rule: Rule) -> Any:
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.expectations.expectation import ColumnMapExpectation
    from great_expectations.expectations.metrics import ColumnMapMetricProvider, column_condition_partial

    class Holds(ColumnMapMetricProvider):  # type: ignore[misc]  # GX has no types here
        condition_metric_name = f"column_values.{rule.name}"

        @column_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, column: Any, **_: Any) -> Any:
            return _series(rule, column)

    return type(_class_name(rule), (ColumnMapExpectation,), _HERE | {"map_metric": Holds.condition_metric_name})


def _column_pair_map(rule: Rule) -> Any:
    from great_expectations.execution_engine import PandasExecutionEngine
    from great_expectations.expectations.expectation import ColumnPairMapExpectation
    from great_expectations.expectations.metrics.map_metric_provider import (
        ColumnPairMapMetricProvider,
        column_pair_condition_partial,
    )

    class Holds(ColumnPairMapMetricProvider):  # type: ignore[misc]
        condition_metric_name = f"column_pair_values.{rule.name}"

        @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
        def _pandas(cls, column_A: Any, column_B: Any, **_: Any) -> Any:
            return _series(rule, column_A, column_B)

    members = {
        "map_metric": Holds.condition_metric_name,
        "ignore_row_if": "either_value_is_missing",
        "success_keys": ("column_A", "column_B", "ignore_row_if", "mostly"),
        "__annotations__": {"ignore_row_if": str},
    }
    return type(_class_name(rule), (ColumnPairMapExpectation,), _HERE | members)


_HERE: dict[str, Any] = {"__module__": __name__, "__annotations__": {}}


def _class_name(rule: Rule) -> str:
    return "Expect" + "".join(word.title() for word in rule.name.split("_"))


def _series(rule: Rule, *columns: Any) -> Any:
    import pandas as pd

    return pd.Series(rule.check(*(column.tolist() for column in columns)), index=columns[0].index, dtype=bool)


@contextmanager
def _redefining() -> Iterator[None]:
    """Great Expectations warns when an expectation is defined anew, as the next task in the same process does."""
    log = logging.getLogger("great_expectations.expectations.registry")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def declared(task: Task) -> list[Any]:
    """The expectations of `quality.expectations`. DeclarationError with all that is wrong with them."""
    found = problems(task)
    if found:
        raise DeclarationError(f"{task.name}: {len(found)} to fix in quality.expectations", problems=tuple(found))
    return [_build(each, number) for number, each in enumerate(task.quality.expectations)]


def problems(task: Task) -> list[str]:
    """What is wrong with `quality.expectations`: unknown types, arguments and columns, each with key, value and hint.
    Great Expectations is imported only where there are any."""
    known = columns_for_teams(task)
    return [
        f"quality.expectations.{number}.{problem}"
        for number, each in enumerate(task.quality.expectations)
        for problem in _problems(each, known)
    ]


def _problems(given: DeclaredExpectation, known: tuple[str, ...]) -> Iterator[str]:
    try:
        kind = implementation(given.type)
    except KeyError:
        yield f"type: no expectation for a table in memory is called {given.type}. {_meant(given.type, _types())}"
        return
    for key in COLUMNS:
        named = given.kwargs.get(key, [])
        for column in named if isinstance(named, list) else [named]:
            if column not in known:
                yield f"kwargs.{key}: there is no column {column!r}. {_meant(str(column), known)}"
    for key in _REGEX:
        yield from _bad_patterns(key, given.kwargs.get(key, []))
    yield from _bad_kwargs(kind, given)


def _bad_kwargs(kind: Any, given: DeclaredExpectation) -> Iterator[str]:
    try:
        kind(**given.kwargs)
    except ValueError as error:  # pydantic's, of version 1, which Great Expectations brings
        names = [name for name in kind.__fields__ if name not in RESERVED]
        for each in error.errors() if hasattr(error, "errors") else [{"loc": ("",), "msg": str(error)}]:
            key = str(each["loc"][0])
            value = f" (it is {given.kwargs[key]!r})" if key in given.kwargs else ""
            where = "kwargs" if key == "__root__" else f"kwargs.{key}"
            yield f"{where}: {each['msg']}{value}. {given.type} takes {', '.join(names)}"
    except TypeError as error:
        yield f"kwargs: {error}"


def _bad_patterns(key: str, patterns: Any) -> Iterator[str]:
    for pattern in patterns if isinstance(patterns, list) else [patterns]:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            yield f"kwargs.{key}: {pattern!r} is no regular expression: {error}"


def _build(given: DeclaredExpectation, number: int) -> Any:
    built = implementation(given.type)(
        **given.kwargs, severity=given.severity, meta={"name": declared_name(number, given.type)}
    )
    built.description = given.description or _in_words(built)
    return built


def _in_words(built: Any) -> str:
    """Great Expectations' own sentence about an expectation."""
    built.render()
    shown = built.rendered_content[0].value
    values = {name: param["value"] for name, param in (shown.params or {}).items()}
    return Template(shown.template or built.expectation_type).safe_substitute(values)


def _types() -> list[str]:
    from great_expectations.expectations.registry import list_registered_expectation_implementations

    return [name for name in list_registered_expectation_implementations() if name.startswith("expect_")]


def _meant(given: str, known: Any) -> str:
    close = get_close_matches(given, known, n=1)
    shown = ", ".join(known) if len(known) < 30 else "https://greatexpectations.io/expectations lists them"
    return f"Did you mean {close[0]}?" if close else f"Known: {shown}"
