"""The asset `deployed_endpoint`: the registered version behind the endpoint, once the held-out rows proved that it is
the one that was evaluated.

    challenger := version 4      served under support_tickets@4, beside the champion, which keeps the traffic
    parity                       the test rows through the endpoint, compared with the evaluation's answers
    champion := version 4        deployment_state.json, then MLflow's alias; /version has to show it; one question is
    asked

When parity fails nothing moves, and the verdict names the rows. When the endpoint does not take the champion over, the
deployment takes its own move back, and nothing else: a rollback in the meantime stands, and ends the deployment. A
version that was rolled back is not deployed again until a person says so: the asset is made then, with a failed verdict
that says what serves instead and since when.

What it is not: the endpoint (app.py). The asset is the desired state and the proof that it was reached.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.config import Task
from finetune_pipeline.errors import FinetuneError, GateRefused, ServingError
from finetune_pipeline.records import Check, Json, ServedVersion, Verdict, dumps, read_jsonl, write_jsonl
from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.client import Live, live_endpoint, wait_served
from finetune_pipeline.serve.deployment_state import Desired, Version
from finetune_pipeline.serve.parity import BASE_ROWS, Parity, chosen, compare, evaluate_parity, replay
from finetune_pipeline.store import StageContext, StageResult, TaskStore


def desired_fingerprint(task: Task, store: TaskStore) -> str:
    """Changes when what the current deployment says no longer holds: its model lost the traffic to another one, was
    rolled back, or a hold on it was lifted. A deployment does not change its own fingerprint."""
    registered = store.current("registered_model")
    return str(deployment_state.moves_of(deployment_state.read(store), registered.content_hash)) if registered else "0"


def live_opponent(task: Task, store: TaskStore) -> dict[str, Json] | None:
    """The live version that the current adapter has to hold its own against (a ServedVersion), None if there is none.
    A part of the evaluation's key: another live version makes the evaluation stale, the candidate's own deployment does
    not."""
    adapter = store.current("adapter")
    live = deployment_state.opponent(deployment_state.read(store), adapter.content_hash if adapter else "")
    if live is None:
        return None
    return asdict(ServedVersion(live.version, live.adapter, live.adapter_key, live.base, live.max_new_tokens))


def deployed_endpoint(context: StageContext) -> StageResult:
    """Prove parity on the challenger, then move the traffic. ServingError when the endpoint does not do what it is
    told; the champion so far goes on serving."""
    version = candidate(context)
    state = deployment_state.read(context.store)
    if version.adapter in state.held:
        return _held(context, version, state)
    _same_opponent(context)
    with live_endpoint(context.task, context.store, context.report) as endpoint:
        deployment_state.change(context.store, lambda s: deployment_state.challenge(s, version))
        try:
            wait_served(endpoint, context.task.name, "challenger", version.adapter, context.report)
            partial = context.store.unfinished("deployed_endpoint", "answers", context.key)
            parity = _replayed(context, endpoint, version, AnswerFile(partial / "answers.jsonl"))
            shutil.rmtree(partial)
            verdict = evaluate_parity(parity, context.task.serve.parity, version.registered)
            write_jsonl(context.out / "parity.jsonl", parity.rows)
            if not verdict.passed:
                return _outcome(context, version, verdict, None)
            _move(context, endpoint, version, state.champion)
            sample = _sample(context, endpoint, version)
        except ServingError as error:
            raise _explained(context, version, error) from error
        finally:
            deployment_state.change(context.store, lambda s: deployment_state.withdraw(s, version))
        return _outcome(context, version, verdict, sample)


def candidate(context: StageContext) -> Version:
    """The registered model as a version to be served, with the settings that are declared now."""
    model, adapter, serve = context.inputs["registered_model"], context.inputs["adapter"], context.task.serve
    facts = model.json("model.json")
    if facts["adapter"] != adapter.content_hash:
        raise GateRefused(
            f"version {facts['version']} was registered with adapter {facts['adapter']}, and the current one is "
            f"{adapter.content_hash}",
            "materialize registered_model again",
        )
    return Version(
        version=int(facts["version"]),
        adapter=adapter.content_hash,
        adapter_key=adapter.key,
        base=context.inputs["base_model"].content_hash,
        registered=model.content_hash,
        evaluation=context.inputs["eval_report"].content_hash,
        served_as=context.task.served_as,
        max_new_tokens=_max_new_tokens(context),
        on_invalid=serve.on_invalid,
        log_text=serve.log_text,
        at=context.now,
    )


def _same_opponent(context: StageContext) -> None:
    """GateRefused when the candidate was compared with another version than the one that it would replace."""
    compared, live = (
        context.inputs["eval_report"].json("report.json").get("champion"),
        live_opponent(context.task, context.store),
    )
    before, now = (version["version"] if version else None for version in (compared, live))
    if (compared or {}).get("adapter") != (live or {}).get("adapter"):
        raise GateRefused(
            f"the evaluation compared the candidate with {_live(before)}, and now {_live(now)} is live",
            "run `finetune run`: it evaluates and decides again",
        )


def _live(version: Json) -> str:
    return "no version" if version is None else f"version {version}"


def _replayed(context: StageContext, endpoint: Live, version: Version, kept: AnswerFile) -> Parity:
    rows = read_jsonl(context.inputs["eval_report"].path("answers.jsonl"))
    evaluated = {row["id"]: row["text"] for row in rows if row["variant"] == "tuned"}
    test = list(context.inputs["data_split"].examples("test.jsonl"))
    examples = chosen(test, evaluated, context.task.serve.parity_rows)
    if not examples:
        raise GateRefused("the evaluation holds no answers to the test rows", "materialize eval_report again")
    name = version.served_as
    served = replay(endpoint, f"{name}@{version.version}", examples, context.report, kept)
    base: dict[str, str] = {}
    while len(base) < len(examples) and not any(served[id_] != text for id_, text in base.items()):
        some = examples[len(base) :][: BASE_ROWS + len(base)]
        base |= replay(endpoint, f"{name}@base", some, context.report, kept)
    return compare(examples, served, evaluated, base, context.task.answer)


def _move(context: StageContext, endpoint: Live, version: Version, champion: Version | None) -> None:
    """Give the traffic of `champion` to `version` and see it there; else take the move back."""
    before = deployment_state.read(context.store)
    deployment_state.change(context.store, lambda s: deployment_state.promote(s, version, champion))
    try:
        wait_served(endpoint, context.task.name, "champion", version.adapter, context.report)
    except FinetuneError:
        deployment_state.change(context.store, lambda s: deployment_state.undo(s, version, before))
        raise
    if complaint := deployment_state.follow(context.store):
        context.report.log(complaint)


def _explained(context: StageContext, version: Version, error: ServingError) -> ServingError:
    """The error, or what is behind it: a model that is not desired any more is not served any more."""
    now = deployment_state.read(context.store)
    if version in (now.challenger, now.champion):
        return error
    last = f": {now.history[-1].what} at {now.history[-1].at}" if now.history else ""
    return ServingError(
        f"version {version.version} is not the desired state of {context.task.name} any more{last}",
        "somebody moved the traffic during the deployment, and that stands; run again",
    )


def _sample(context: StageContext, endpoint: Live, version: Version) -> dict[str, Any]:
    """One held-out question, asked of the champion by its public name, and of the base model."""
    example = next(context.inputs["data_split"].examples("test.jsonl"))
    asked = [example]
    tuned = replay(endpoint, version.served_as, asked, context.report)[example.id]
    base = replay(endpoint, f"{version.served_as}@base", asked, context.report)[example.id]
    return {"id": example.id, "prompt": example.prompt, "tuned": tuned, "base": base, "reference": example.completion}


def _outcome(context: StageContext, version: Version, verdict: Verdict, sample: dict[str, Any] | None) -> StageResult:
    serving = deployment_state.read(context.store).champion
    facts = {
        "task": context.task.name,
        "served_as": version.served_as,
        "candidate": deployment_state.plain(version),
        "champion": deployment_state.plain(serving) if serving else None,
        "parity": verdict.to_json(),
        "sample": sample,
    }
    (context.out / "endpoint.json").write_text(dumps(facts), "utf-8")
    summary: dict[str, Json] = {
        "model": version.served_as,
        "version": serving.version if serving else 0,
        "candidate": version.version,
        "parity": verdict.figures.get("share"),
        "rows": verdict.figures.get("rows", 0),
    }
    return StageResult(summary, verdict)


def _held(context: StageContext, version: Version, state: Desired) -> StageResult:
    reason = state.held[version.adapter]
    serving = f"version {state.champion.version} serves" if state.champion else "nothing is served"
    check = Check("not rolled back", False, "a version that nobody took back", reason)
    summary = f"version {version.version} is not deployed: {reason}; {serving} (`finetune unhold` lifts this)"
    write_jsonl(context.out / "parity.jsonl", ())
    return _outcome(context, version, Verdict("deployed_endpoint", False, version.registered, summary, (check,)), None)


def _max_new_tokens(context: StageContext) -> int:
    return int(context.inputs["eval_report"].json("report.json")["max_new_tokens"])
