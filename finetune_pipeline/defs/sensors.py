"""The sensors of one task that start runs. A tick reads where the task stands; `offers.decide` says what follows.

    new_files          a declared source holds other content than was read last: `prepare`
    review_finished    every row of the sample has its verdicts: `train`
    traffic_alarm      the traffic report raised an alarm, and there is new data: `prepare`

Training on unchanged data would make the same model again, so an alarm without new data starts nothing: it is said in
the tick, and once as an observation of `traffic_report`.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.storage.tags import RUN_KEY_TAG, SENSOR_NAME_TAG

from finetune_pipeline.config import Task
from finetune_pipeline.defs.offers import UNCHANGED, LastRun, Memory, Offer, Wanted, decide
from finetune_pipeline.graph import BY_NAME
from finetune_pipeline.ingest.sources import missing
from finetune_pipeline.materialize import Plan, gather, open_task, plan, step_key
from finetune_pipeline.records import Artifact
from finetune_pipeline.review import verdict_store
from finetune_pipeline.store import TaskStore

STATUSES = {
    dg.DagsterRunStatus.SUCCESS: "done",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "canceled",
}


def new_files(name: str, job: UnresolvedAssetJobDefinition, assets: Sequence[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_new_files",
        job=job,
        minimum_interval_seconds=60,
        description="Starts `prepare` when a declared source has other content than the rows that were read last.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        task, store = open_task(name)
        lost = missing(task, store.root)
        if lost:
            return dg.SensorResult(skip_reason=f"{'; '.join(lost)}: put it there, or correct `sources` in task.yaml")
        return _result(_offer(context, task, store, "raw_examples", assets), "new files")

    return sensor


def review_finished(name: str, job: UnresolvedAssetJobDefinition, assets: Sequence[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_review_finished",
        job=job,
        minimum_interval_seconds=30,
        description="Goes on with `train` as soon as the experts have judged every row of the current sample.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        task, store = open_task(name)
        sample = store.current("review_sample")
        if sample is None or store.current("clean_examples") is None:
            return dg.SensorResult(skip_reason="there is no sample yet: run `prepare`")
        rows = list(sample.examples("sample.jsonl"))
        progress = verdict_store.progress(rows, verdict_store.load(store, task, sample), task.review)
        if progress.done < progress.total:
            return dg.SensorResult(skip_reason=f"{progress.done} of {progress.total} rows reviewed")
        return _result(_offer(context, task, store, "expert_review", assets), "review finished")

    return sensor


def traffic_alarm(name: str, job: UnresolvedAssetJobDefinition, assets: Sequence[str]) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{name}_traffic_alarm",
        job=job,
        minimum_interval_seconds=300,
        description="Starts `prepare` when the traffic report raised an alarm and the sources hold new data, not more "
        "often than the cool-down; without new data it says that there is an alarm, and starts nothing.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        task, store = open_task(name)
        report = store.current("traffic_report")
        if report is None or report.verdict is None or report.verdict.passed:
            return dg.SensorResult(skip_reason="no alarm" if report else "no traffic report yet")
        memory = Memory.parse(context.cursor)
        offer = _offer(context, task, store, "raw_examples", assets)
        if offer.reason == UNCHANGED:
            return _tell(name, report, offer.memory)
        cooling = _cooling(task, memory) if offer.memory.turn != memory.turn else ""
        return dg.SensorResult(skip_reason=cooling) if cooling else _result(offer, report.verdict.summary[:200])

    return sensor


def _tell(name: str, report: Artifact, memory: Memory) -> dg.SensorResult:
    """An alarm without new data: told in every tick, and once in the asset's history."""
    alarm = report.verdict.summary if report.verdict else ""
    said = (
        f"alarm: {alarm}. No retraining is started: the sources hold what was read last, so that the same model would "
        "come out. Add examples of what changed to the sources"
    )
    event = dg.AssetObservation(dg.AssetKey([name, "traffic_report"]), description=said, metadata={"alarm": alarm})
    return dg.SensorResult(
        skip_reason=said,
        cursor=replace(memory, told=report.content_hash).dump(),
        asset_events=[event] if memory.told != report.content_hash else [],
    )


def _cooling(task: Task, memory: Memory) -> str:
    """Why another retraining has to wait, or ""."""
    if not memory.turn:
        return ""
    last, hours = datetime.fromisoformat(memory.turn), task.automation.cooldown_hours
    if datetime.now(UTC) - last >= timedelta(hours=hours):
        return ""
    return f"an alarm started a retraining at {last:%Y-%m-%d %H:%M} UTC; the next one waits {hours:g} h from then"


def _offer(
    context: dg.SensorEvaluationContext, task: Task, store: TaskStore, first: str, assets: Sequence[str]
) -> Offer:
    """What follows for the job of `assets`, which begins with `first`, from the inputs that count now."""
    memory = Memory.parse(context.cursor)
    last = _last_run(context, memory.run_key)
    inputs, made = gather(BY_NAME[first], store), store.current(first)
    key = "" if isinstance(inputs, str) else step_key(BY_NAME[first], task, store, inputs)
    wanted = Wanted(key, made is None or made.inputs_key != key)
    if last is not None and last.status != "active" and (wanted.changed or last.status == "failed"):
        ours = [each for each in plan(task, store) if each.asset in assets]
        unmade = [each.asset for each in ours if each.state != "fresh"]
        wanted = replace(wanted, unmade=unmade, refused=next((said for each in ours if (said := _refusal(each))), ""))
    return decide(memory, wanted, last, datetime.now(UTC))


def _refusal(each: Plan) -> str:
    """What the gate said that stops the job here, or ""."""
    verdict = each.artifact.verdict if each.artifact else None
    stops = each.state == "fresh" and BY_NAME[each.asset].blocking and verdict is not None and not verdict.passed
    return verdict.summary if stops and verdict else ""


def _result(offer: Offer, why: str) -> dg.SensorResult:
    cursor = offer.memory.dump()
    if not offer.run:
        return dg.SensorResult(skip_reason=offer.reason, cursor=cursor)
    request = dg.RunRequest(run_key=offer.memory.run_key, tags={"finetune/reason": why})
    return dg.SensorResult(run_requests=[request], cursor=cursor)


def _last_run(context: dg.SensorEvaluationContext, run_key: str) -> LastRun | None:
    """The newest run that this sensor started with this run key; Dagster's own retry of a run keeps its tags."""
    tags = {SENSOR_NAME_TAG: context.sensor_name, RUN_KEY_TAG: run_key}
    record = next(iter(context.instance.get_run_records(dg.RunsFilter(tags=tags), limit=1)), None)
    if record is None or not run_key:
        return None
    ended = datetime.fromtimestamp(record.end_time, UTC) if record.end_time else None
    return LastRun(record.dagster_run.run_id, STATUSES.get(record.dagster_run.status, "active"), ended)
