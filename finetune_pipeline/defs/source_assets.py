"""What the steps read beyond their inputs, as observable source assets: `<task>/sources`, `<task>/reviews`, ...

    task_sources(task)      one definition; "Observe sources" in the UI hashes what is there now

A source whose data version changed makes the assets that read it stale in the UI, and the cause names the source. An
observation costs what `finetune status` costs: hashes of files are kept until the files change.
"""

import json
from collections.abc import Iterator

import dagster as dg

from finetune_pipeline.config import Task
from finetune_pipeline.defs.metadata import beta_features
from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.graph import STEPS, External, Step
from finetune_pipeline.materialize import fingerprint, open_task
from finetune_pipeline.records import Json, content_id

EVERY = "*/10 * * * *"


def source_key(task: str, external: External) -> dg.AssetKey:
    return dg.AssetKey([task, external.name])


def data_version_of(value: Json) -> dg.DataVersion:
    """The data version for what a fingerprint function returned."""
    return dg.DataVersion(content_id(json.dumps(value, sort_keys=True)))


def task_sources(task: Task) -> dg.AssetsDefinition:
    """All sources of the task. Their automation condition observes them every ten minutes, for deployments that switch
    the sensor `<task>_observe_sources` on."""
    name, steps = task.name, {step.external.name: step for step in STEPS if step.external}
    specs = [_spec(task, step.external) for step in steps.values() if step.external]

    def observe(context: dg.AssetExecutionContext) -> Iterator[dg.ObserveResult]:
        for key in context.selected_asset_keys:
            yield _observe(name, steps[key.path[-1]], key)

    with beta_features():
        sources: dg.AssetsDefinition = dg.multi_observable_source_asset(
            name=f"{name}__observe_sources", specs=specs, can_subset=True, description="Hashes what is there now."
        )(observe)
    return sources


def _spec(task: Task, external: External) -> dg.AssetSpec:
    return dg.AssetSpec(
        source_key(task.name, external),
        group_name=task.name,
        description=external.description,
        owners=list(task.owners),
        kinds={"source"},
        automation_condition=dg.AutomationCondition.on_cron(EVERY),
    )


def _observe(name: str, step: Step, key: dg.AssetKey) -> dg.ObserveResult:
    try:
        version = data_version_of(fingerprint(step, *open_task(name)))
    except FinetuneError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    return dg.ObserveResult(asset_key=key, data_version=version)


def observation_sensor(task: Task) -> dg.AutomationConditionSensorDefinition:
    """Observes the sources regularly, and starts nothing else. Off until switched on."""
    keys = [source_key(task.name, step.external) for step in STEPS if step.external]
    return dg.AutomationConditionSensorDefinition(
        f"{task.name}_observe_sources",
        target=dg.AssetSelection.assets(*keys),
        default_status=dg.DefaultSensorStatus.STOPPED,
        description="Observes the sources every ten minutes, so that the UI shows what is stale; materializes nothing.",
    )
