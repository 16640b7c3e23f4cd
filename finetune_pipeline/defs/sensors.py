"""The sensors of one task that request runs. A tick reads the task's state; `run_requests.decide` says what follows.

    new_files          a declared source has other content than was read last: the job `prepare`
    review_finished    every row of the sample has its verdicts: the job `train`
    traffic_alarm      the traffic report raised an alarm, and there is new data: the job `prepare`

Training on unchanged data makes the same model again. So an alarm without new data requests no run: the skip reason
reports it, and one observation of `traffic_report`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg

from finetune_pipeline.config import Task
from finetune_pipeline.defs.run_requests import UNCHANGED, Cursor, InputState, LastRun, RunStatus, Tick, decide
from finetune_pipeline.graph import BY_NAME
from finetune_pipeline.ingest.sources import missing
from finetune_pipeline.materialize import Plan, gather, open_task, plan, step_key
from finetune_pipeline.records import Artifact
from finetune_pipeline.review.waiting import sample_progress
from finetune_pipeline.store import TaskStore

# Tags that Dagster puts on the runs of a sensor
RUN_KEY_TAG, SENSOR_NAME_TAG = "dagster/run_key", "dagster/sensor_name"
STATUSES: Mapping[dg.DagsterRunStatus, RunStatus] = {
    dg.DagsterRunStatus.SUCCESS: "done",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
}


def new_files(name: str, job_name: str, assets: Sequence[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_new_files",
        job_name=job_name,
        minimum_interval_seconds=60,
        description="Starts `prepare` when a declared source has other content than was read last.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        task, store = open_task(name)
        absent = missing(task, store.root)
        if absent:
            return dg.SensorResult(skip_reason=f"{'; '.join(absent)}: put it there, or correct `sources` in task.yaml")
        return _result(_tick(context, task, store, "raw_examples", assets), "new files")

    return sensor


def review_finished(name: str, job_name: str, assets: Sequence[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_review_finished",
        job_name=job_name,
        minimum_interval_seconds=30,
        description="Starts `train` when every row of the current sample has its verdicts.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        task, store = open_task(name)
        sample = store.current("review_sample")
        if sample is None or store.current("clean_examples") is None:
            return dg.SensorResult(skip_reason="there is no sample yet: run `prepare`")
        progress = sample_progress(task, store, sample)
        if progress.done < progress.total:
            return dg.SensorResult(skip_reason=f"{progress.done} of {progress.total} rows reviewed")
        return _result(_tick(context, task, store, "expert_review", assets), "review finished")

    return sensor


def traffic_alarm(name: str, job_name: str, assets: Sequence[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_traffic_alarm",
        job_name=job_name,
        minimum_interval_seconds=300,
        description="Starts `prepare` when the traffic report raised an alarm and there is new data, at most once "
        "per cool-down. Without new data it reports the alarm and starts nothing.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        task, store = open_task(name)
        report = store.current("traffic_report")
        if report is None or report.verdict is None or report.verdict.passed:
            return dg.SensorResult(skip_reason="no alarm" if report else "no traffic report yet")
        cursor = Cursor.parse(context.cursor)
        tick = _tick(context, task, store, "raw_examples", assets)
        if tick.reason == UNCHANGED:
            return _report_alarm(name, report, tick.cursor)
        cooldown = _cooldown(task, cursor) if tick.cursor.changed_at != cursor.changed_at else ""
        return dg.SensorResult(skip_reason=cooldown) if cooldown else _result(tick, report.verdict.summary[:200])

    return sensor


def _report_alarm(name: str, report: Artifact, cursor: Cursor) -> dg.SensorResult:
    """An alarm without new data: the skip reason of every tick, and one event of the asset."""
    alarm = report.verdict.summary if report.verdict else ""
    message = (
        f"alarm: {alarm}. No retraining is started: the sources have no new data, and the same data would give the "
        "same model. Add examples of what changed to the sources"
    )
    event = dg.AssetObservation(dg.AssetKey([name, "traffic_report"]), description=message, metadata={"alarm": alarm})
    return dg.SensorResult(
        skip_reason=message,
        cursor=replace(cursor, reported=report.content_hash).dump(),
        asset_events=[event] if cursor.reported != report.content_hash else [],
    )


def _cooldown(task: Task, cursor: Cursor) -> str:
    """The skip reason within the cool-down, or ""."""
    if not cursor.changed_at:
        return ""
    last, hours = datetime.fromisoformat(cursor.changed_at), task.automation.cooldown_hours
    if datetime.now(UTC) - last >= timedelta(hours=hours):
        return ""
    return f"an alarm started a retraining at {last:%Y-%m-%d %H:%M} UTC; the next one waits {hours:g} h from then"


def _tick(context: dg.SensorEvaluationContext, task: Task, store: TaskStore, first: str, assets: Sequence[str]) -> Tick:
    """What follows for the job of `assets`, which begins with `first`, from the current inputs."""
    cursor = Cursor.parse(context.cursor)
    last = _last_run(context, cursor.run_key)
    inputs, made = gather(BY_NAME[first], store), store.current(first)
    key = "" if isinstance(inputs, str) else step_key(BY_NAME[first], task, store, inputs)
    state = InputState(key, made is None or made.inputs_key != key)
    if last is not None and last.status != "active" and (state.changed or last.status == "failed"):
        plans = [each for each in plan(task, store) if each.asset in assets]
        stale = [each.asset for each in plans if each.state != "fresh"]
        state = replace(state, stale=stale, gate_summary=next((text for each in plans if (text := _failed(each))), ""))
    return decide(cursor, state, last, datetime.now(UTC))


def _failed(each: Plan) -> str:
    """The verdict of a blocking gate that failed, which ends the job here, or ""."""
    verdict = each.artifact.verdict if each.artifact else None
    stops = each.state == "fresh" and BY_NAME[each.asset].blocking and verdict is not None and not verdict.passed
    return verdict.summary if stops and verdict else ""


def _result(tick: Tick, why: str) -> dg.SensorResult:
    cursor = tick.cursor.dump()
    if not tick.run:
        return dg.SensorResult(skip_reason=tick.reason, cursor=cursor)
    request = dg.RunRequest(run_key=tick.cursor.run_key, tags={"finetune/reason": why})
    return dg.SensorResult(run_requests=[request], cursor=cursor)


def _last_run(context: dg.SensorEvaluationContext, run_key: str) -> LastRun | None:
    """The newest run that this sensor started with this run key; Dagster's own retry of a run keeps its tags."""
    tags = {SENSOR_NAME_TAG: context.sensor_name, RUN_KEY_TAG: run_key}
    record = next(iter(context.instance.get_run_records(dg.RunsFilter(tags=tags), limit=1)), None)
    if record is None or not run_key:
        return None
    ended = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None
    return LastRun(record.dagster_run.run_id, STATUSES.get(record.dagster_run.status, "active"), ended)
