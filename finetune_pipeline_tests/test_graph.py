"""The table of the graph agrees with the code of the stages that it names."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

import pytest

import finetune_pipeline
from finetune_pipeline.graph import STEPS, Step
from finetune_pipeline.materialize import function

PACKAGE = Path(finetune_pipeline.__file__).parent


def texts_of(step: Step) -> set[str]:
    """Every string in the code of the step's package."""
    package = PACKAGE / step.make.split(":")[0].split(".")[1]
    trees = (ast.parse(path.read_text("utf-8")) for path in package.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@pytest.mark.parametrize("step", [step for step in STEPS if isinstance(step.check_names, tuple)], ids=lambda s: s.asset)
def test_the_check_names_of_a_gate_are_those_that_its_code_gives(step: Step) -> None:
    texts = texts_of(step)
    assert {*step.check_names} <= {*texts, *(head + tail for head, tail in product({"no drift: "} & texts, texts))}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.asset)
def test_every_function_of_the_table_exists(step: Step) -> None:
    named = [
        step.make,
        step.external and step.external.fingerprint,
        step.check_names if isinstance(step.check_names, str) else None,
    ]
    assert all(callable(function(name)) for name in named if name)
