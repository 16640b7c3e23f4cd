"""What Dagster loads: every task's assets in a chain that is the graph's, light to import, and told the same way by
workspace.yaml and `[tool.dg]`."""

import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

from finetune_pipeline.definitions import build
from finetune_pipeline.graph import BY_NAME, STEPS, downstream

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "mlflow", "great_expectations", "pandas", "scipy", "sklearn", "ray")


@pytest.fixture(scope="module")
def definitions() -> dg.Definitions:
    return build(["support_tickets", "other_task"])


def test_loads_two_tasks_side_by_side(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)
    keys = definitions.resolve_asset_graph().get_all_asset_keys()
    assert keys == {dg.AssetKey([task, s.asset]) for task in ("support_tickets", "other_task") for s in STEPS}


def test_dependencies_are_those_of_the_table(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    parents = graph.get(dg.AssetKey(["support_tickets", "expert_review"])).parent_keys
    assert {key.path[-1] for key in parents} == {"clean_examples", "review_sample", "base_model", "data_quality"}


def test_blocking_gates_are_blocking_checks(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for step in (s for s in STEPS if s.check):
        key = dg.AssetCheckKey(dg.AssetKey(["support_tickets", step.asset]), str(step.check))
        assert graph.get(key).blocking is step.blocking, step.asset


def test_every_gate_in_the_table_has_a_check() -> None:
    for step in STEPS:
        for gate, _ in step.gates:
            assert BY_NAME[gate].check, f"{step.asset} asks {gate} for a verdict it does not have"


def test_downstream_follows_needs_gates_and_order() -> None:
    assert downstream("registered_model") == ["registered_model", "deployed_endpoint", "traffic_report"]
    assert "adapter" in downstream("baseline_report")


def test_sensors_and_schedules_wait_to_be_switched_on(definitions: dg.Definitions) -> None:
    assert {s.default_status for s in definitions.sensors or ()} == {dg.DefaultSensorStatus.STOPPED}
    schedules = [s for s in definitions.schedules or () if isinstance(s, dg.ScheduleDefinition)]
    assert {s.default_status for s in schedules} == {dg.DefaultScheduleStatus.STOPPED}


@pytest.mark.parametrize("module", ["finetune_pipeline.definitions", "finetune_pipeline.cli"])
def test_importing_is_light(module: str) -> None:
    code = f"import {module}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert said.stdout.strip() == "[]"


def test_workspace_and_dg_load_the_same_code() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text("utf-8"))["load_from"][0]["python_module"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["dg"]["project"]
    assert workspace["location_name"] == project["code_location_name"]
    assert workspace["module_name"] == f"{project['root_module']}.definitions"
