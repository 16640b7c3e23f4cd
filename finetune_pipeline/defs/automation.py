"""Jobs, sensors and schedules of one task. All off until a person switches them on in the UI.

    prepare        raw rows to the experts' sample
    train          from the finished review to the live endpoint
    traffic        the report on live traffic
    everything     prepare and train in one run, for tasks whose review is recorded

No step runs while the experts review: `prepare` ends, and the sensor `review_finished` starts `train` after the last
verdict, which may take days. Runs are requested by sensors and not by automation conditions on the assets, since a
condition has no retry with a growing delay, no cool-down, and would start `expert_review` at every single verdict.
"""

import dagster as dg

from finetune_pipeline.config import Task
from finetune_pipeline.defs import sensors
from finetune_pipeline.defs.source_assets import observation_sensor
from finetune_pipeline.graph import STEPS
from finetune_pipeline.materialize import open_task, plan

TRAFFIC = ["traffic_report"]
PREPARE = [s.asset for s in STEPS[: [s.asset for s in STEPS].index("expert_review")]]
TRAIN = [s.asset for s in STEPS if s.asset not in (*PREPARE, *TRAFFIC)]
JOBS = {"prepare": PREPARE, "train": TRAIN, "traffic": TRAFFIC, "everything": [*PREPARE, *TRAIN]}


def task_automation(task: Task) -> dg.Definitions:
    """Everything of the task that starts runs."""
    name = task.name
    prepare, train, traffic, _ = (f"{name}_{job}" for job in JOBS)
    return dg.Definitions(
        jobs=[
            dg.define_asset_job(
                f"{name}_{job}",
                selection=[dg.AssetKey([name, asset]) for asset in assets],
                tags=queue_tag(name, job),
            )
            for job, assets in JOBS.items()
        ],
        sensors=[
            sensors.new_files(name, prepare, PREPARE),
            sensors.review_finished(name, train, TRAIN),
            sensors.traffic_alarm(name, prepare, PREPARE),
            observation_sensor(task),
        ],
        schedules=[_retraining(task, prepare), _traffic_hourly(name, traffic)],
    )


def queue_tag(name: str, job: str) -> dict[str, str]:
    """The tag by which dagster.yaml lets one run of a task run at a time. The report on live traffic has a turn of its
    own: it reads what is deployed, and must not wait for hours while a training waits for a device."""
    return {"finetune/task": f"{name}/traffic" if job == "traffic" else name}


def _retraining(task: Task, job_name: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{task.name}_retraining",
        job_name=job_name,
        cron_schedule=task.automation.schedule,
        description="Regular retraining: reads the sources again. Starts nothing while nothing changed.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        states = {each.asset: each.state for each in plan(*open_task(task.name))}
        stale = [asset for asset in PREPARE if states[asset] != "fresh"]
        if not stale:
            return dg.SkipReason("nothing changed: sources, declaration and code are those of the last run")
        return dg.RunRequest(tags={"finetune/reason": f"regular; not up to date: {', '.join(stale)}"[:200]})

    return schedule


def _traffic_hourly(name: str, job_name: str) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"{name}_traffic_hourly",
        job_name=job_name,
        cron_schedule="7 * * * *",
        description="Evaluates the alarms on the traffic of the last hour.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        task, store = open_task(name)
        if store.current("deployed_endpoint") is None:
            return dg.SkipReason("nothing is deployed yet, so there is no traffic to report on")
        report = next(each for each in plan(task, store) if each.asset == "traffic_report")
        if report.state == "fresh":
            return dg.SkipReason("no request was logged since the last report")
        return dg.RunRequest(tags={"finetune/reason": "hourly"})

    return schedule
