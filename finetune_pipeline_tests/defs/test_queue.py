"""The run queue of a real instance with the project's dagster.yaml: runs that compute wait, light runs do not."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.api import create_execution_plan
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon

from finetune_pipeline.definitions import build
from finetune_pipeline.defs.run import instance
from finetune_pipeline.graph import STEPS

from .conftest import declare

ROOT = Path(__file__).parents[2]
QUEUED, STARTED = dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTED


@pytest.fixture
def definitions(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.chdir(ROOT)  # the first start copies dagster.yaml
    names = [f"task{number}" for number in range(6)]
    for name in names:
        declare(data, name)
    return build(names)


def add(dagster: dg.DagsterInstance, definitions: dg.Definitions, job: str, status: dg.DagsterRunStatus) -> str:
    """A run of the job as the daemon finds it."""
    found = definitions.resolve_job_def(job)
    plan = create_execution_plan(found)
    where = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("finetune_pipeline"), "__repository__")
    run = dagster.create_run_for_job(
        found, execution_plan=plan, status=status, tags=found.tags, remote_job_origin=RemoteJobOrigin(where, job)
    )
    return run.run_id


def next_runs(dagster: dg.DagsterInstance) -> Sequence[str]:
    """The jobs of the runs that the daemon would start now."""
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
    runs = daemon._get_runs_to_dequeue(dagster, dagster.get_concurrency_config(), fixed_iteration_time=None)
    return [run.job_name for run in runs]


def test_runs_that_wait_for_a_device_leave_the_slots_to_light_runs(definitions: dg.Definitions) -> None:
    with instance() as dagster:
        add(dagster, definitions, "task0_train", STARTED)
        for number in range(1, 5):
            add(dagster, definitions, f"task{number}_train", QUEUED)
        add(dagster, definitions, "task5_traffic", QUEUED)
        add(dagster, definitions, "task1_traffic", QUEUED)  # its own training waits
        assert next_runs(dagster) == ["task5_traffic", "task1_traffic"]


def test_as_many_runs_compute_as_the_machine_has_devices(definitions: dg.Definitions) -> None:
    with instance() as dagster:
        dagster.event_log_storage.set_concurrency_slots("compute", 2)  # `dagster instance concurrency set compute 2`
        first = add(dagster, definitions, "task0_train", STARTED)
        for number in range(1, 4):
            add(dagster, definitions, f"task{number}_everything", QUEUED)
        assert next_runs(dagster) == ["task1_everything"]
        run = dagster.get_run_by_id(first)
        assert run is not None
        dagster.report_run_failed(run, "its process was killed")  # no slot is left behind
        assert next_runs(dagster) == ["task1_everything", "task2_everything"]


def test_the_assets_that_compute_are_in_the_pool(definitions: dg.Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    pools = {step.asset: graph.get(dg.AssetKey(["task0", step.asset])).pools for step in STEPS}
    assert {asset for asset, found in pools.items() if found == {"compute"}} == {
        "suitability_report",
        "baseline_report",
        "training_plan",
        "training_search",
        "adapter",
        "eval_report",
    }
