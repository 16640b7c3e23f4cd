"""What Dagster loads: the assets of every task with the edges of the graph, from workspace.yaml and `[tool.dg]`."""

import subprocess
import sys
import tomllib
from pathlib import Path

import dagster as dg
import pytest
import yaml

from finetune_pipeline.definitions import build
from finetune_pipeline.graph import BY_NAME, STEPS, downstream, drawn_upstream
from finetune_pipeline.store import task_names

from .conftest import declare

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "mlflow", "great_expectations", "pandas", "scipy", "sklearn", "ray")


@pytest.fixture
def definitions(data: Path) -> dg.Definitions:
    for name in ("support_tickets", "other_task"):
        declare(data, name)
    return build(["support_tickets", "other_task"])


def test_loads_two_tasks_side_by_side(definitions: dg.Definitions) -> None:
    dg.Definitions.validate_loadable(definitions)
    keys = definitions.resolve_asset_graph().get_all_asset_keys()
    names = {*(s.asset for s in STEPS), *(s.external.name for s in STEPS if s.external)}
    assert keys == {dg.AssetKey([task, name]) for task in ("support_tickets", "other_task") for name in names}


def test_dependencies_are_those_of_the_table(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    parents = graph.get(dg.AssetKey(["support_tickets", "expert_review"])).parent_keys
    assert {key.path[-1] for key in parents} == {"clean_examples", "review_sample", "base_model", "reviews"}


def test_blocking_gates_are_blocking_checks(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for step in (s for s in STEPS if s.check):
        key = dg.AssetCheckKey(dg.AssetKey(["support_tickets", step.asset]), str(step.check))
        assert graph.get(key).blocking is step.blocking, step.asset


def test_every_gate_in_the_table_has_a_check() -> None:
    for step in STEPS:
        for gate, _ in step.gates:
            assert BY_NAME[gate].check, f"{step.asset} asks {gate} for a verdict it does not have"


def test_an_edge_that_a_longer_way_implies_is_drawn_only_where_it_carries_changes() -> None:
    drawn = {step.asset: set(drawn_upstream(step)) for step in STEPS}
    assert drawn["eval_report"] == {"baseline_report", "adapter"}
    assert drawn["adapter"] == {"training_search"} and drawn["training_search"] == {"baseline_report"}
    assert drawn["traffic_report"] == {"deployed_endpoint"}
    assert drawn["data_split"] == {"raw_examples", "clean_examples", "expert_review"}, "an input may change alone"
    for step in STEPS:  # order: everything that has to be there first is reached on some way
        reached = {step.asset}
        for other in reversed(STEPS):
            reached |= drawn[other.asset] if other.asset in reached else set()
        assert {*step.upstream} <= reached, step.asset


def test_downstream_follows_needs_gates_and_order() -> None:
    assert downstream("registered_model") == ["registered_model", "deployed_endpoint", "traffic_report"]
    assert "adapter" in downstream("baseline_report")


def test_sensors_and_schedules_that_start_runs_wait_to_be_switched_on(definitions: dg.Definitions) -> None:
    running = [s.name for s in definitions.sensors or () if s.default_status == dg.DefaultSensorStatus.RUNNING]
    assert running == ["code_location_reload", "run_monitoring", "mlflow_delivery"]
    schedules = [s for s in definitions.schedules or () if isinstance(s, dg.ScheduleDefinition)]
    assert {s.default_status for s in schedules} == {dg.DefaultScheduleStatus.STOPPED}


@pytest.mark.parametrize("module", ["finetune_pipeline.definitions", "finetune_pipeline.cli.commands"])
def test_importing_is_light(module: str) -> None:
    code = f"import {module}, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_workspace_and_dg_load_the_same_code() -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text("utf-8"))["load_from"][0]["python_module"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["dg"]["project"]
    assert workspace["location_name"] == project["code_location_name"]
    assert workspace["module_name"] == f"{project['root_module']}.definitions"


STEPS_NAMES = ("base_model", "adapter")
BROKEN = {
    "my-task": "name: my-task\nsources: [{path: raw/a.csv}]\nbase: {path: model, license: mit}\n",
    "My Task": "name: [",
    "empty": "",
    "cron": "name: cron\nsources: [{path: a.csv}]\nbase: {path: m, license: mit}\n"
    "automation: {schedule: every monday}\n",
    "last_friday": "name: last_friday\nsources: [{path: a.csv}]\nbase: {path: m, license: mit}\n"
    "automation: {schedule: 0 6 * * 5L}\n",  # cron, but none that Dagster knows
    "keys": "name: keys\nsourcs: []\n",
    "a b": "1: 2",
    "a_b": "2026-13-45",
    "twice": "name: twice\nname: twice\nsources: [{path: a.csv}]\nbase: {path: m, license: mit}\n",
    "deep": "name: " + "[" * 100_000,
    "tagged": "name: !!python/name:os.system\n",
}


def test_a_broken_task_leaves_the_others_alone_and_is_named(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    declare(data, "fine")
    for name, text in BROKEN.items():
        (data / name).mkdir()
        (data / name / "task.yaml").write_text(text, "utf-8")
    (data / "notes").mkdir()  # a folder that is no task
    (data / "folder" / "task.yaml").mkdir(parents=True)

    definitions = build(task_names())
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    assert {key.path[1] for key in graph.materializable_asset_keys} == {step.asset for step in STEPS}
    assert {key.path[0] for key in graph.materializable_asset_keys} == {"fine"}
    keys = [key for key in graph.external_asset_keys if key.path[0] == "_broken_tasks"]
    broken = {graph.get(key).metadata["task"]: graph.get(key) for key in keys}
    assert set(broken) == {*BROKEN, "folder"}
    assert "automation.schedule: a cron line has five fields" in str(broken["cron"].description)
    assert "Did you mean `sources`?" in str(broken["keys"].description)
    for name in broken:
        assert f"the task `{name}` is not loaded" in caplog.text
    assert definitions.resolve_job_def("fine_prepare") is not None


def test_a_task_may_be_called_as_the_group_of_broken_ones(data: Path) -> None:
    declare(data, "broken_tasks")
    for name in (*STEPS_NAMES, "_broken_tasks"):
        declare(data, name, unknown={})
    definitions = build(task_names())
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    assert {key.path[0] for key in graph.materializable_asset_keys} == {"broken_tasks"}
    keys = [key for key in graph.external_asset_keys if key.path[0] == "_broken_tasks"]
    assert {graph.get(key).metadata["task"] for key in keys} == {*STEPS_NAMES, "_broken_tasks"}


@pytest.mark.parametrize("name", ["class", "input", "default", "context", "x" * 63])
def test_any_name_that_a_task_may_have_can_be_loaded(data: Path, name: str) -> None:
    declare(data, name)
    dg.Definitions.validate_loadable(build([name]))
