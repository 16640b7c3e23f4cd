"""The asset `deployed_endpoint`: the registered version serves, after the held-out rows were replayed through it.

    challenger = version 4       served as support_tickets@4 beside the champion, which keeps the traffic
    parity                       the test rows through the endpoint, compared with the evaluation's answers
    champion = version 4         deployment_state.json, then MLflow's alias; /version has to confirm it
    sample                       one test row through the champion and through the base model

When parity fails, no traffic moves and the verdict names the rows. When the endpoint does not serve the new champion,
the deployment reverts its own promotion only: a rollback during the deployment is kept, and ends the deployment. A
version that was rolled back is held; the asset then has a failed verdict that names what serves instead, and since
when. The folder of the asset holds parity.jsonl (a `ParityRow` a line) and endpoint.json (a `DeploymentReport`).
"""

from __future__ import annotations

import shutil
from dataclasses import asdict

from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.baseline.variants import TUNED
from finetune_pipeline.config import Task
from finetune_pipeline.errors import FinetuneError, GateRefused, ServingError
from finetune_pipeline.evaluate.champion import served_version
from finetune_pipeline.evaluate.report import EvalReport
from finetune_pipeline.records import Check, Json, ServedVersion, Verdict, dumps, read_jsonl, write_jsonl
from finetune_pipeline.release.registration import ModelRecord
from finetune_pipeline.serve import deployment_state, transitions
from finetune_pipeline.serve.client import EndpointClient, live_endpoint, wait_until_served
from finetune_pipeline.serve.deployment_report import DeploymentReport, Sample
from finetune_pipeline.serve.deployment_state import DeploymentState, Version
from finetune_pipeline.serve.parity import ParityResult, compare, evaluate_parity, select_examples
from finetune_pipeline.serve.replay import replay
from finetune_pipeline.serve.rollback import sync_alias
from finetune_pipeline.store import StageContext, StageResult, TaskStore

BASE_ROWS = 4  # first replayed through the base model; more follow until an answer differs from the served one


def deployment_fingerprint(task: Task, store: TaskStore) -> str:
    """Changes when the current deployment no longer holds: its model lost the traffic to another one, was rolled back,
    or a hold on it was removed. A deployment does not change its own fingerprint."""
    registered = store.current("registered_model")
    if registered is None:
        return "0"
    return str(transitions.invalidations(deployment_state.read(store), registered.content_hash))


def live_version(task: Task, store: TaskStore) -> dict[str, Json] | None:
    """The live version that the current adapter is compared with (a ServedVersion), None if there is none. Part of the
    evaluation's key: another live version makes the evaluation stale, the candidate's own deployment does not."""
    live = _live(store)
    return asdict(live) if live else None


def _live(store: TaskStore) -> ServedVersion | None:
    adapter = store.current("adapter")
    live = transitions.live_version(deployment_state.read(store), adapter.content_hash if adapter else "")
    if live is None:
        return None
    return ServedVersion(live.version, live.adapter, live.adapter_key, live.base, live.max_new_tokens, live.precision)


def deployed_endpoint(context: StageContext) -> StageResult:
    """Check parity on the challenger, then make it the champion. ServingError when the endpoint does not serve it; the
    old champion then keeps the traffic."""
    version = candidate(context)
    state = deployment_state.read(context.store)
    if version.adapter in state.held:
        return _held_result(context, version, state)
    _check_live_version(context)
    with live_endpoint(context.task, context.store, context.report) as endpoint:
        deployment_state.update(context.store, lambda s: transitions.add_challenger(s, version))
        try:
            wait_until_served(endpoint, context.task.name, "challenger", version.adapter, context.report)
            unfinished = context.store.unfinished("deployed_endpoint", "answers", context.key)
            parity = _replay_test_rows(context, endpoint, version, AnswerFile(unfinished / "answers.jsonl"))
            shutil.rmtree(unfinished)
            computed = context.inputs["eval_report"].json("report.json").get("precision", "fp32")
            verdict = evaluate_parity(parity, context.task.serve.parity, version.registered, computed)
            write_jsonl(context.out / "parity.jsonl", parity.rows)
            if not verdict.passed:
                return _result(context, version, verdict, None)
            _promote(context, endpoint, version, state.champion)
            sample = _sample(context, endpoint, version)
        except ServingError as error:
            raise _explain(context, version, error) from error
        finally:
            deployment_state.update(context.store, lambda s: transitions.remove_challenger(s, version))
        return _result(context, version, verdict, sample)


def candidate(context: StageContext) -> Version:
    """The registered model as a version, with the serving settings of the present declaration. GateRefused when it was
    registered with another adapter than the current one."""
    model, adapter, serve = context.inputs["registered_model"], context.inputs["adapter"], context.task.serve
    evaluation = context.inputs["eval_report"]
    registered: ModelRecord = model.json("model.json")
    report: EvalReport = evaluation.json("report.json")
    if registered["adapter"] != adapter.content_hash:
        raise GateRefused(
            f"version {registered['version']} was registered with adapter {registered['adapter']}, and the current "
            f"one is {adapter.content_hash}",
            "materialize registered_model again",
        )
    return Version(
        version=registered["version"],
        adapter=adapter.content_hash,
        adapter_key=adapter.key,
        base=context.inputs["base_model"].content_hash,
        registered=model.content_hash,
        evaluation=evaluation.content_hash,
        served_as=context.task.served_as,
        max_new_tokens=report["max_new_tokens"],
        on_invalid=serve.on_invalid,
        log_text=serve.log_text,
        at=context.now,
        precision=serve.precision,
    )


def _check_live_version(context: StageContext) -> None:
    """GateRefused when the candidate was evaluated against another version than the one that it would replace."""
    compared = served_version(context.inputs["eval_report"].json("report.json").get("champion"))
    live = _live(context.store)
    if (compared and compared.adapter) == (live and live.adapter):
        return
    before, now = (f"version {version.version}" if version else "no version" for version in (compared, live))
    raise GateRefused(
        f"the evaluation compared the candidate with {before}, and now {now} is live",
        "run `finetune run`: it evaluates and decides again",
    )


def _replay_test_rows(
    context: StageContext, endpoint: EndpointClient, version: Version, answer_log: AnswerFile
) -> ParityResult:
    rows = read_jsonl(context.inputs["eval_report"].path("answers.jsonl"))
    evaluated = {row["id"]: row["text"] for row in rows if row["variant"] == TUNED}
    test = list(context.inputs["data_split"].examples("test.jsonl"))
    examples = select_examples(test, evaluated, context.task.serve.parity_rows)
    if not examples:
        raise GateRefused("the evaluation holds no answers to the test rows", "materialize eval_report again")
    name = version.served_as
    served = replay(endpoint, f"{name}@{version.version}", examples, context.report, answer_log)
    base: dict[str, str] = {}
    while len(base) < len(examples) and not any(served[id_] != text for id_, text in base.items()):
        more = examples[len(base) :][: BASE_ROWS + len(base)]
        base |= replay(endpoint, f"{name}@base", more, context.report, answer_log)
    return compare(examples, served, evaluated, base, context.task.answer)


def _promote(context: StageContext, endpoint: EndpointClient, version: Version, champion: Version | None) -> None:
    """Make `version` the champion in place of `champion`, and wait until it serves; else revert the promotion."""
    before = deployment_state.read(context.store)
    deployment_state.update(context.store, lambda s: transitions.promote(s, version, champion))
    try:
        wait_until_served(endpoint, context.task.name, "champion", version.adapter, context.report)
    except FinetuneError:
        deployment_state.update(context.store, lambda s: transitions.revert_promotion(s, version, before))
        raise
    if warning := sync_alias(context.store):
        context.report.log(warning)


def _explain(context: StageContext, version: Version, error: ServingError) -> ServingError:
    """The error, or its cause: the version is no longer in the desired state, so the endpoint stopped serving it."""
    state = deployment_state.read(context.store)
    if version in (state.challenger, state.champion):
        return error
    last = f": {state.history[-1].action} at {state.history[-1].at}" if state.history else ""
    return ServingError(
        f"version {version.version} is not the desired state of {context.task.name} any more{last}",
        "run again: the traffic was moved during the deployment, and that move is kept",
    )


def _sample(context: StageContext, endpoint: EndpointClient, version: Version) -> Sample:
    """The first test row, answered by the champion under its public name and by the base model."""
    example = next(context.inputs["data_split"].examples("test.jsonl"))
    tuned = replay(endpoint, version.served_as, [example], context.report)[example.id]
    base = replay(endpoint, f"{version.served_as}@base", [example], context.report)[example.id]
    return {
        "id": example.id,
        "prompt": example.prompt,
        "tuned": tuned,
        "base": base,
        "reference": example.completion,
    }


def _result(context: StageContext, version: Version, verdict: Verdict, sample: Sample | None) -> StageResult:
    champion = deployment_state.read(context.store).champion
    report: DeploymentReport = {
        "task": context.task.name,
        "served_as": version.served_as,
        "candidate": deployment_state.version_record(version),
        "champion": deployment_state.version_record(champion) if champion else None,
        "parity": verdict.to_json(),
        "sample": sample,
    }
    (context.out / "endpoint.json").write_text(dumps(report), "utf-8")
    summary: dict[str, Json] = {
        "model": version.served_as,
        "version": champion.version if champion else None,
        "candidate": version.version,
        "parity": verdict.figures.get("share"),
        "rows": verdict.figures.get("rows", 0),
    }
    return StageResult(summary, verdict)


def _held_result(context: StageContext, version: Version, state: DeploymentState) -> StageResult:
    note = state.held[version.adapter]
    serving = f"version {state.champion.version} serves" if state.champion else "no version serves"
    check = Check("not rolled back", False, "a version that was not rolled back", note)
    allow = f"run `finetune unhold {context.task.name}` to allow it again"
    summary = f"version {version.version} is not deployed: {note}; {serving}; {allow}"
    write_jsonl(context.out / "parity.jsonl", ())
    return _result(context, version, Verdict("deployed_endpoint", False, version.registered, summary, (check,)), None)
