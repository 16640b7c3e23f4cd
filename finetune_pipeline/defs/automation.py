"""Jobs, sensors and schedules of one task. All off until a person switches them on in the UI.

    prepare    raw rows to the experts' sample
    train      from the finished review to the live endpoint
    traffic    the report on live traffic
    everything prepare and train in one run, for tasks whose review is already there

The wait for the experts is a state, not a running step: `prepare` ends, and the sensor `review_finished` starts `train`
when the last verdict is in, be it days later.
"""

from collections.abc import Sequence

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from finetune_pipeline.config import Task
from finetune_pipeline.defs import sensors
from finetune_pipeline.graph import STEPS
from finetune_pipeline.materialize import open_task, plan

PREPARE = [s.asset for s in STEPS[: [s.asset for s in STEPS].index("expert_review")]]
TRAIN = [s.asset for s in STEPS if s.asset not in (*PREPARE, "traffic_report")]
TRAFFIC = ["traffic_report"]


def task_automation(task: Task) -> dg.Definitions:
    """Everything of the task that starts runs."""
    name = task.name
    prepare, train, traffic = _job(name, "prepare", PREPARE), _job(name, "train", TRAIN), _job(name, "traffic", TRAFFIC)
    everything = _job(name, "everything", [*PREPARE, *TRAIN])
    return dg.Definitions(
        jobs=[prepare, train, traffic, everything],
        sensors=[
            sensors.new_files(name, prepare, PREPARE),
            sensors.review_finished(name, train, TRAIN),
            sensors.traffic_alarm(name, prepare, PREPARE),
        ],
        schedules=[_weekly(task, prepare), _traffic_hourly(name, traffic)],
    )


def _job(name: str, part: str, assets: Sequence[str]) -> UnresolvedAssetJobDefinition:
    keys = [dg.AssetKey([name, asset]) for asset in assets]
    return dg.define_asset_job(f"{name}_{part}", selection=keys, tags={"finetune/task": name})


def _weekly(task: Task, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{task.name}_weekly",
        job=job,
        cron_schedule=task.automation.schedule,
        description="Regular retraining: reads the sources again. While nothing changed it starts nothing.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        states = {each.asset: each.state for each in plan(*open_task(task.name))}
        todo = [asset for asset in PREPARE if states[asset] != "fresh"]
        if not todo:
            return dg.SkipReason("nothing changed: sources, declaration and code are those of the last run")
        return dg.RunRequest(tags={"finetune/reason": f"regular; not up to date: {', '.join(todo)}"[:200]})

    return schedule


def _traffic_hourly(name: str, job: UnresolvedAssetJobDefinition) -> dg.ScheduleDefinition:
    @dg.schedule(name=f"{name}_traffic_hourly", job=job, cron_schedule="7 * * * *", description="Keeps alarms fresh.")
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        task, store = open_task(name)
        if store.current("deployed_endpoint") is None:
            return dg.SkipReason("nothing is deployed yet, so there is no traffic to report on")
        report = next(each for each in plan(task, store) if each.asset == "traffic_report")
        if report.state == "fresh":
            return dg.SkipReason("no request was logged since the last report")
        return dg.RunRequest(tags={"finetune/reason": "hourly"})

    return schedule
