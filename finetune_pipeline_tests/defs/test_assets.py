"""Assets, sources and checks in a real Dagster instance; stale status as its API answers it, once over GraphQL.

The stages are toys that write what their inputs say, so that the whole graph is made in seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from finetune_pipeline import materialize
from finetune_pipeline.definitions import build
from finetune_pipeline.defs.checks import dagster_name
from finetune_pipeline.defs.run import QUIET, instance
from finetune_pipeline.graph import BY_NAME, STEPS, Step
from finetune_pipeline.materialize import function, open_task
from finetune_pipeline.records import Check, Verdict
from finetune_pipeline.store import StageContext, StageResult

from .conftest import declare

ABOUT = {about: gate for step in STEPS for gate, about in step.gates}
QUERY = "{assetNodes{assetKey{path} staleStatus staleCauses{key{path} category reason dependency{path}}}}"
CLIENT = "from dagster_graphql.cli import main; main()"
SUFFIX: dict[str, str] = {}  # what a toy stage writes besides


def toy(step: Step) -> Callable[[StageContext], StageResult]:
    """A stage whose files follow from its inputs; `always_new` ones hold something that no two runs share."""

    def make(context: StageContext) -> StageResult:
        made = uuid.uuid4().hex if step.always_new else ""
        row: dict[str, object] = {"id": made or "1", "messages": [], "group": None, "text": SUFFIX.get(step.asset, "")}
        read = {name: artifact.content_hash for name, artifact in context.inputs.items()}
        for name in step.rows or ("figures.jsonl",):
            (context.out / name).write_text(json.dumps(row | read) + "\n", "utf-8")
        if step.check is None:
            return StageResult({"rows": 1})
        about = next((about for other in STEPS for gate, about in other.gates if gate == step.asset), "")
        about_hash = context.inputs[about].content_hash if about in context.inputs else context.key
        checks = (Check("test rows", True, "at least 30", "40", value=40),)
        return StageResult({}, Verdict(step.asset, True, about_hash, "fine", checks, {"rows": 1}))

    return make


@pytest.fixture
def task(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task with toy stages; its folder."""
    toys = {step.make: toy(step) for step in STEPS}
    monkeypatch.setattr(materialize, "function", lambda dotted: toys.get(dotted) or function(dotted))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    SUFFIX.clear()
    return declare(data, "parcels", owners=["team:logistics", "anna@example.org"])


def run(*assets: str, force: bool = False) -> dg.ExecuteInProcessResult:
    """Materialize or observe these assets of the task, as the UI does."""
    keys = [dg.AssetKey(["parcels", asset]) for asset in assets]
    job = dg.Definitions(jobs=[dg.define_asset_job("chosen", selection=keys)])
    config: dict[str, Any] = (
        {"ops": {f"parcels__{asset}": {"config": {"force": True}} for asset in assets}} if force else {}
    )
    config |= QUIET
    with instance() as dagster:
        definitions = dg.Definitions.merge(build(["parcels"]), job)
        return definitions.resolve_job_def("chosen").execute_in_process(instance=dagster, run_config=config)


def everything() -> None:
    run(*(step.asset for step in STEPS))


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(f"parcels__{asset}")
    return {name: value.value for name, value in event.metadata.items()}


def stale() -> dict[str, list[str]]:
    """What is stale, each with its causes, by the resolver that answers the UI's query."""
    graph, found = build(["parcels"]).resolve_asset_graph(), {}
    with instance() as dagster:
        resolver = CachingStaleStatusResolver(dagster, graph, LoadingContextForTest(dagster))
        for key in graph.get_all_asset_keys():
            if resolver.get_status(key) not in (StaleStatus.FRESH, None):
                causes = resolver.get_stale_causes(key)
                found[key.path[1]] = [
                    f"{(each.dependency or each.key).asset_key.path[1]}: {each.reason}" for each in causes
                ]
    return found


def stale_in_ui() -> dict[str, list[str]]:
    """The same from a code server of its own, over GraphQL; half a minute on a busy machine."""
    command = [sys.executable, "-c", CLIENT, "-m", "finetune_pipeline.definitions", "-t", QUERY]
    # not in the repository: Dagster reads the .env of the working directory, which names another DAGSTER_HOME
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=dict(os.environ), cwd=os.environ["FINETUNE_DATA"]
    )
    answer = next(
        line for line in done.stdout.splitlines() if line.startswith("{")
    )  # among the code server's log lines
    nodes = json.loads(answer)["data"]["assetNodes"]
    return {
        node["assetKey"]["path"][1]: [
            (cause["dependency"] or cause["key"])["path"][1] + ": " + cause["reason"] for cause in node["staleCauses"]
        ]
        for node in nodes
        if node["staleStatus"] not in ("FRESH", None)
    }


def test_a_fresh_asset_is_reused_unless_forced(task: Path) -> None:
    first = metadata(run("raw_examples"), "raw_examples")
    again = metadata(run("raw_examples"), "raw_examples")
    assert (first["reused"], again["reused"]) == (False, True)
    assert (again["made_at"], again["seconds"]) == (first["made_at"], first["seconds"])
    SUFFIX["raw_examples"] = "other"
    assert metadata(run("raw_examples"), "raw_examples")["reused"], "no input changed"
    forced = metadata(run("raw_examples", force=True), "raw_examples")
    assert not forced["reused"]
    assert forced["content_hash"] != first["content_hash"]


def test_a_forced_adapter_leaves_the_one_that_is_served(task: Path) -> None:
    everything()
    _, store = open_task("parcels")
    served = store.current("adapter")
    assert served is not None
    assert not metadata(run("adapter", force=True), "adapter")["reused"]
    now = store.current("adapter")
    assert now is not None and now.content_hash != served.content_hash
    assert store.find("adapter", served.key) == served
    store.verify(served)


def test_metadata_under_the_keys_of_the_ui(task: Path) -> None:
    found = metadata(run("raw_examples"), "raw_examples")
    assert found["dagster/row_count"] == 1
    columns = {column.name: column for column in found["dagster/column_schema"].columns}
    assert (columns["id"].type, columns["messages"].type) == ("string", "array")
    assert columns["group"].constraints.nullable
    assert found["declaration"]["sources"][0]["path"] == "raw/rows.csv"
    graph = build(["parcels"]).resolve_asset_graph()
    for step in STEPS:
        node = graph.get(dg.AssetKey(["parcels", step.asset]))
        assert node.owners == ["team:logistics", "anna@example.org"]
        (reference,) = node.metadata["dagster/code_references"].value.code_references
        line = Path(reference.file_path).read_text("utf-8").splitlines()[reference.line_number - 1]
        assert line.startswith(f"def {step.make.rpartition(':')[2]}("), step.asset


def test_every_check_of_a_gate_is_an_asset_check_with_its_number(task: Path) -> None:
    result = run("base_model", "raw_examples", "clean_examples", *UP_TO_SPLIT)
    results = {each.check_name: each for each in result.get_asset_check_evaluations()}
    gate, check = results["no_overlap"], results["test_rows"]
    assert gate.blocking and not check.blocking
    assert check.metadata["value"].value == 40.0
    assert check.metadata["observed"].value == "40"
    assert results["share_of_test_rows"].passed and not results["share_of_test_rows"].metadata["reported"].value
    assert "prompt_fits" in results, "the rules of the declaration have checks"


UP_TO_SPLIT = ("suitability_report", "data_quality", "review_sample", "expert_review", "data_split")


def test_names_of_checks_are_names_for_dagster(data: Path) -> None:
    assert dagster_name("fits into this machine's memory") == "fits_into_this_machine_s_memory"
    declare(data, "parcels", sources=[{"path": "raw/rows.csv", "name": "Übersicht"}, {"path": "a.csv", "name": "ü!"}])
    dg.Definitions.validate_loadable(build(["parcels"]))


def test_the_ui_shows_what_is_stale_and_why(task: Path) -> None:
    everything()
    assert stale() == {}, "also the sources that were never observed before"
    (task / "raw" / "rows.csv").write_text("input,output\nfour,4\n", "utf-8")
    run("sources", "reviews")
    assert stale_in_ui() == {"raw_examples": ["sources: has a new data version"]}
    assert set(stale()) == {"raw_examples"}
    run("raw_examples")
    assert stale() == {}, "the toy gives the same rows: nothing downstream is stale"


def test_a_section_of_the_declaration_makes_its_assets_stale(task: Path, data: Path) -> None:
    everything()
    declare(data, "parcels", owners=["team:other"], train={"num_epochs": 3})
    found = stale()
    assert set(found) == {"suitability_report", "training_plan", "training_search", "adapter"}
    assert "code version" in found["adapter"][0]
    states = {each.asset: each.state for each in materialize.plan(*open_task("parcels"))}
    assert {asset for asset in BY_NAME if states[asset] != "fresh"} >= set(found)


def test_staleness_reaches_assets_whose_edge_is_not_drawn(task: Path) -> None:
    """eval_report reads data_split; drawn is only the way over baseline_report and what is made after it."""
    everything()
    SUFFIX["data_split"] = "other rows"
    run("data_split", force=True)
    assert set(stale()) == {"training_plan"}
    run("training_plan")
    assert set(stale()) == {"baseline_report"}
    run("baseline_report")
    assert set(stale()) == {"training_search", "eval_report"}
    run("training_search")
    assert set(stale()) == {"adapter", "eval_report"}
    run("adapter", "eval_report")
    assert set(stale()) == {"release_decision"}
