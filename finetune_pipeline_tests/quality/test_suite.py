"""The gate's checks have names that are known without Great Expectations."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.quality.suite import check_names
from finetune_pipeline_tests.quality.conftest import declare, rows, verdict

TWO_SOURCES = [{"path": "raw/x.csv"}, {"path": "raw/y.csv"}]
DECLARED = [
    {"type": "expect_column_value_lengths_to_be_between", "kwargs": {"column": "prompt", "min_value": 1}},
    {"type": "expect_table_column_count_to_be_between", "kwargs": {"min_value": 1}, "severity": "warning"},
]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"clean": {"html": False, "personal_data": "keep"}, "sources": TWO_SOURCES},
        {"quality": {"min_rows": 10, "expectations": DECLARED}},
    ],
)
def test_the_names_are_those_of_the_verdict(sections: dict[str, Any]) -> None:
    task = declare(**sections)
    checks = verdict(rows(30, bad=3), task).checks
    assert check_names(task) == tuple(check.name for check in checks)
    values = {check.name: check.value for check in checks}
    assert values["row_ok"] == values["completion_valid"] == 0.9
    assert (values["enough_rows"], values["share_dropped"]) == (30, 0)
