"""Jobs, sensors and schedules of one task. All off until a person switches them on in the UI.

    prepare    raw rows to the experts' sample
    train      from the finished review to the live endpoint
    traffic    the report on live traffic
    everything prepare and train in one run, for tasks whose review is already there

The wait for the experts is a state, not a running step: `prepare` ends, and the sensor `review_finished` starts `train`
when the last verdict is in, be it days later.
"""

from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.graph import BY_NAME, STEPS
from finetune_pipeline.materialise import open_task, plan
from finetune_pipeline.review import inbox

PREPARE = [s.asset for s in STEPS[: [s.asset for s in STEPS].index("expert_review")]]
TRAIN = [s.asset for s in STEPS if s.asset not in (*PREPARE, "traffic_report")]


def task_automation(name: str) -> dg.Definitions:
    """Everything of the task `name` that starts runs."""
    prepare = _job(name, "prepare", PREPARE)
    train = _job(name, "train", TRAIN)
    traffic = _job(name, "traffic", ["traffic_report"])
    everything = _job(name, "everything", [*PREPARE, *TRAIN])
    sensors = [_new_files(name, prepare), _review_finished(name, train), _alarm(name, prepare)]
    schedules = [
        dg.ScheduleDefinition(
            name=f"{name}_weekly",
            job=prepare,
            cron_schedule=_cron(name),
            description="Regular retraining: reads the sources again; unchanged data makes nothing anew.",
        ),
        dg.ScheduleDefinition(
            name=f"{name}_traffic_hourly", job=traffic, cron_schedule="7 * * * *", description="Keeps the alarms fresh."
        ),
    ]
    return dg.Definitions(jobs=[prepare, train, traffic, everything], sensors=sensors, schedules=schedules)


def _job(name: str, part: str, assets: list[str]) -> UnresolvedAssetJobDefinition:
    keys = [dg.AssetKey([name, asset]) for asset in assets]
    return dg.define_asset_job(f"{name}_{part}", selection=keys, tags={"finetune/task": name})


def _cron(name: str) -> str:
    try:
        return open_task(name)[0].automation.schedule
    except FinetuneError:
        return "0 6 * * 1"  # a broken declaration must not take the other tasks' code location down


def _new_files(name: str, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_new_files",
        job=job,
        minimum_interval_seconds=60,
        description="Starts `prepare` when a declared source has other content than the rows that were read last.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        task, store = open_task(name)
        raw = next(p for p in plan(task, store) if p.asset == "raw_examples")
        if raw.state == "fresh":
            return dg.SkipReason("the sources hold what was read last")
        return dg.RunRequest(run_key=f"{name}:raw:{raw.key}", tags={"finetune/reason": "new files"})

    return sensor


def _review_finished(name: str, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_review_finished",
        job=job,
        minimum_interval_seconds=30,
        description="Goes on with `train` as soon as the experts have judged every row of the current sample.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        task, store = open_task(name)
        sample = store.current("review_sample")
        if sample is None:
            return dg.SkipReason("there is no sample yet: run `prepare`")
        rows = list(sample.examples("sample.jsonl"))
        progress = inbox.progress(rows, inbox.load(store, task, sample), task.review)
        if progress.done < progress.total:
            return dg.SkipReason(f"{progress.done} of {progress.total} rows reviewed")
        review = next(p for p in plan(task, store) if p.asset == "expert_review")
        if review.state == "fresh":
            return dg.SkipReason("this review has been used already")
        return dg.RunRequest(run_key=f"{name}:review:{review.key}", tags={"finetune/reason": "review finished"})

    return sensor


def _alarm(name: str, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_traffic_alarm",
        job=job,
        minimum_interval_seconds=300,
        description="Starts a retraining when the traffic report raises an alarm, not more often than the cool-down.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        task, store = open_task(name)
        report = store.current(BY_NAME["traffic_report"].asset)
        if report is None or report.verdict is None or report.verdict.passed:
            return dg.SkipReason("no alarm" if report else "no traffic report yet")
        last = datetime.fromisoformat(context.cursor) if context.cursor else None
        made = datetime.fromisoformat(report.manifest["made_at"])
        if last is not None and made - last < timedelta(hours=task.automation.cooldown_hours):
            return dg.SkipReason(f"an alarm started a retraining at {last:%Y-%m-%d %H:%M}; cooling down")
        context.update_cursor(made.astimezone(UTC).isoformat())
        reason = {"finetune/reason": report.verdict.summary[:200]}
        return dg.RunRequest(run_key=f"{name}:alarm:{report.content}", tags=reason)

    return sensor
