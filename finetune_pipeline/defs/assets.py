"""The rows of graph.py as Dagster assets, one set a task: a shell opens the task, makes one asset, reports metadata.

    task_assets(task)      <task>/base_model … <task>/traffic_report, with a check for each gate and each of its checks

The declaration is read again at run time, so that an edit of task.yaml counts without a reload of the code location.
Staleness in the UI is that of `finetune status`: the code version holds the declared sections that an asset depends on,
and a materialization states the versions of code and sources that it was really made from.
"""

import json
from typing import Any

import dagster as dg
from pydantic import Field

from finetune_pipeline.config import Task
from finetune_pipeline.defs.checks import check_results, check_specs
from finetune_pipeline.defs.metadata import definition_metadata, materialization_metadata
from finetune_pipeline.defs.reporter import DagsterReporter, console
from finetune_pipeline.defs.run_monitoring import tag_run
from finetune_pipeline.defs.source_assets import data_version_of, source_key
from finetune_pipeline.errors import FinetuneError, JobCanceled
from finetune_pipeline.graph import STEPS, Step, drawn_upstream
from finetune_pipeline.materialize import Materialized, declared_values, materialize_or_reuse, open_task
from finetune_pipeline.records import content_id

# A run with one of these assets waits in the queue while others compute (dagster.yaml: its limit is the number of
# devices), and so leaves the run slots to light assets. Which device a job gets is decided by backends/devices.py.
POOL = "compute"
STOPPED = "stopped on request; finished work is kept, and a training continues from its checkpoint"


class MaterializeConfig(dg.Config):
    """What the launchpad asks for. Shift-click "Materialize" opens it."""

    force: bool = Field(
        default=False,
        description="Make the asset again although nothing changed. An earlier artifact is kept: it may be served.",
    )


def task_assets(task: Task) -> list[dg.AssetsDefinition]:
    """All assets of the task, with its name as key prefix and group."""
    return [_asset(task, step) for step in STEPS]


def _asset(task: Task, step: Step) -> dg.AssetsDefinition:
    name = task.name
    key = dg.AssetKey([name, step.asset])
    sources = [source_key(name, step.external)] if step.external else []

    @dg.asset(
        key=key,
        deps=[*(dg.AssetKey([name, other]) for other in drawn_upstream(step)), *sources],
        group_name=name,
        description=step.description,
        kinds=set(step.kinds),
        tags={"stage": step.stage},
        owners=list(task.owners),
        metadata=definition_metadata(step, task),
        code_version=code_version(step, task),
        check_specs=check_specs(step, task, key),
        pool=POOL if step.computes else None,
    )
    def shell(context: dg.AssetExecutionContext, config: MaterializeConfig) -> dg.MaterializeResult:  # type: ignore[type-arg]
        found, now = _make(context, name, step.asset, config.force)
        return dg.MaterializeResult(
            metadata=materialization_metadata(step, now, found),
            data_version=dg.DataVersion(found.artifact.content_hash),
            check_results=check_results(step, task, found.artifact),
            tags=_provenance(context, step, now, found),
        )

    return shell


def code_version(step: Step, task: Task) -> str:
    """Changes with the code of the step and with the sections of the declaration that change its result."""
    return f"{step.version}-{content_id(json.dumps(declared_values(step, task), sort_keys=True))[:8]}"


def _provenance(context: dg.AssetExecutionContext, step: Step, task: Task, found: Materialized) -> dict[str, str]:
    """The versions that the artifact was made from. Dagster's own tags hold those that were known when the code
    location was loaded and when the source was last observed: both may be older than what the step has read."""
    tags = {"dagster/code_version": code_version(step, task)}
    if step.external is None:
        return tags
    source, version = source_key(task.name, step.external), data_version_of(found.fingerprint).value
    context.log_event(dg.AssetObservation(source, tags={"dagster/data_version": version}))
    return {**tags, f"dagster/input_data_version/{source.to_user_string()}": version}


def _make(context: dg.AssetExecutionContext, name: str, asset: str, force: bool) -> tuple[Materialized, Task]:
    terminal = console.get()
    tag_run(context.instance, context.run_id)
    try:
        if terminal is not None:
            terminal.begins(asset)
        task, store = open_task(name)
        found = materialize_or_reuse(asset, task, store, DagsterReporter(context), force)
        if found.reused:
            context.log.info(f"{asset} is up to date: made {found.artifact.manifest['made_at']}, not made again")
        if terminal is not None:
            terminal.finished(asset, found.artifact)
        return found, task
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        if terminal is not None:
            terminal.failed(asset, JobCanceled(STOPPED, "run the same command again to continue"))
        raise
    except FinetuneError as error:
        if terminal is not None:
            terminal.failed(asset, error)
        metadata: dict[str, Any] = {"exit_code": error.exit_code}
        raise dg.Failure(description=str(error), allow_retries=False, metadata=metadata) from error
