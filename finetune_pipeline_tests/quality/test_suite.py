"""The suite's checks have names that are known without Great Expectations."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import task_from
from finetune_pipeline.quality.suite import build, check_names

LEAST = {"name": "t", "sources": [{"path": "x"}, {"path": "y"}], "base": {"path": "m", "license": "mit"}}


@pytest.mark.parametrize("sections", [{}, {"clean": {"html": False, "personal_data": "keep"}}])
def test_the_names_are_those_of_the_suite(sections: dict[str, Any]) -> None:
    task = task_from(LEAST | sections, "task.yaml")
    assert check_names(task) == tuple(each.meta["name"] for each in build(task).expectations)
