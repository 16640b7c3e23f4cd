"""The asset `deployed_endpoint`: the registered version behind the endpoint, once the held-out rows proved that it is
the one that was evaluated.

    challenger := version 4      served under support_tickets@4, beside the champion, which keeps the traffic
    parity                       the test rows through the endpoint, compared with the evaluation's answers
    champion := version 4        desired.json, then MLflow's alias; /version has to show it; one question is asked

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

from finetune_pipeline.config import Task
from finetune_pipeline.errors import FinetuneError, GateRefused, ServingError
from finetune_pipeline.evaluate.partial import AnswerFile, partial_folder
from finetune_pipeline.materialise import Outcome, Work
from finetune_pipeline.records import Check, Json, ServedVersion, Verdict, dumps, read_jsonl, write_jsonl
from finetune_pipeline.serve import desired
from finetune_pipeline.serve.desired import Desired, Version
from finetune_pipeline.serve.live import Live, live_endpoint, wait_served
from finetune_pipeline.serve.parity import BASE_ROWS, Parity, chosen, compare, judge, replay
from finetune_pipeline.store import TaskStore


def desired_fingerprint(task: Task, store: TaskStore) -> str:
    """Changes when what the current deployment says no longer holds: its model lost the traffic to another one, was
    rolled back, or a hold on it was lifted. A deployment does not change its own fingerprint."""
    registered = store.current("registered_model")
    return str(desired.moves_of(desired.read(store), registered.content)) if registered else "0"


def live_opponent(task: Task, store: TaskStore) -> dict[str, Json] | None:
    """The live version that the current adapter has to hold its own against (a ServedVersion), None if there is none.
    A part of the evaluation's key: another live version makes the evaluation stale, the candidate's own deployment does
    not."""
    adapter = store.current("adapter")
    live = desired.opponent(desired.read(store), adapter.content if adapter else "")
    if live is None:
        return None
    return asdict(ServedVersion(live.version, live.adapter, live.adapter_key, live.base, live.max_new_tokens))


def deployed_endpoint(work: Work) -> Outcome:
    """Prove parity on the challenger, then move the traffic. ServingError when the endpoint does not do what it is
    told; the champion so far goes on serving."""
    version = candidate(work)
    state = desired.read(work.store)
    if version.adapter in state.held:
        return _held(work, version, state)
    _same_opponent(work)
    with live_endpoint(work.task, work.store, work.report) as endpoint:
        desired.change(work.store, lambda s: desired.challenge(s, version))
        try:
            wait_served(endpoint, work.task.name, "challenger", version.adapter, work.report)
            partial = partial_folder(work.store, "deployed_endpoint", work.key)
            parity = _replayed(work, endpoint, version, AnswerFile(partial / "answers.jsonl"))
            shutil.rmtree(partial)
            verdict = judge(parity, work.task.serve.parity, version.registered)
            write_jsonl(work.out / "parity.jsonl", parity.rows)
            if not verdict.passed:
                return _outcome(work, version, verdict, None)
            _move(work, endpoint, version, state.champion)
            sample = _sample(work, endpoint, version)
        except ServingError as error:
            raise _explained(work, version, error) from error
        finally:
            desired.change(work.store, lambda s: desired.withdraw(s, version))
        return _outcome(work, version, verdict, sample)


def candidate(work: Work) -> Version:
    """The registered model as a version to be served, with the settings that are declared now."""
    model, adapter, serve = work.inputs["registered_model"], work.inputs["adapter"], work.task.serve
    facts = model.json("model.json")
    if facts["adapter"] != adapter.content:
        raise GateRefused(
            f"version {facts['version']} was registered with adapter {facts['adapter']}, and the current one is "
            f"{adapter.content}",
            "materialise registered_model again",
        )
    return Version(
        version=int(facts["version"]),
        adapter=adapter.content,
        adapter_key=adapter.key,
        base=work.inputs["base_model"].content,
        registered=model.content,
        evaluation=work.inputs["eval_report"].content,
        served_as=work.task.served_as,
        max_new_tokens=_max_new_tokens(work),
        on_invalid=serve.on_invalid,
        log_text=serve.log_text,
        at=work.now,
    )


def _same_opponent(work: Work) -> None:
    """GateRefused when the candidate was compared with another version than the one that it would replace."""
    compared, live = (
        work.inputs["eval_report"].json("report.json").get("champion"),
        live_opponent(work.task, work.store),
    )
    before, now = (version["version"] if version else None for version in (compared, live))
    if (compared or {}).get("adapter") != (live or {}).get("adapter"):
        raise GateRefused(
            f"the evaluation compared the candidate with {_live(before)}, and now {_live(now)} is live",
            "run `finetune run`: it evaluates and decides again",
        )


def _live(version: Json) -> str:
    return "no version" if version is None else f"version {version}"


def _replayed(work: Work, endpoint: Live, version: Version, kept: AnswerFile) -> Parity:
    rows = read_jsonl(work.inputs["eval_report"].path("answers.jsonl"))
    evaluated = {row["id"]: row["text"] for row in rows if row["variant"] == "tuned"}
    test = list(work.inputs["data_split"].examples("test.jsonl"))
    examples = chosen(test, evaluated, work.task.serve.parity_rows)
    if not examples:
        raise GateRefused("the evaluation holds no answers to the test rows", "materialise eval_report again")
    name = version.served_as
    served = replay(endpoint, f"{name}@{version.version}", examples, work.report, kept)
    base: dict[str, str] = {}
    while len(base) < len(examples) and not any(served[id_] != text for id_, text in base.items()):
        some = examples[len(base) :][: BASE_ROWS + len(base)]
        base |= replay(endpoint, f"{name}@base", some, work.report, kept)
    return compare(examples, served, evaluated, base, work.task.answer)


def _move(work: Work, endpoint: Live, version: Version, champion: Version | None) -> None:
    """Give the traffic of `champion` to `version` and see it there; else take the move back."""
    before = desired.read(work.store)
    desired.change(work.store, lambda s: desired.promote(s, version, champion))
    try:
        wait_served(endpoint, work.task.name, "champion", version.adapter, work.report)
    except FinetuneError:
        desired.change(work.store, lambda s: desired.undo(s, version, before))
        raise
    if complaint := desired.follow(work.store):
        work.report.log(complaint)


def _explained(work: Work, version: Version, error: ServingError) -> ServingError:
    """The error, or what is behind it: a model that is not desired any more is not served any more."""
    now = desired.read(work.store)
    if version in (now.challenger, now.champion):
        return error
    last = f": {now.history[-1].what} at {now.history[-1].at}" if now.history else ""
    return ServingError(
        f"version {version.version} is not the desired state of {work.task.name} any more{last}",
        "somebody moved the traffic during the deployment, and that stands; run again",
    )


def _sample(work: Work, endpoint: Live, version: Version) -> dict[str, Any]:
    """One held-out question, asked of the champion by its public name, and of the base model."""
    example = next(work.inputs["data_split"].examples("test.jsonl"))
    asked = [example]
    tuned = replay(endpoint, version.served_as, asked, work.report)[example.id]
    base = replay(endpoint, f"{version.served_as}@base", asked, work.report)[example.id]
    return {"id": example.id, "question": example.question, "tuned": tuned, "base": base, "reference": example.answer}


def _outcome(work: Work, version: Version, verdict: Verdict, sample: dict[str, Any] | None) -> Outcome:
    serving = desired.read(work.store).champion
    facts = {
        "task": work.task.name,
        "served_as": version.served_as,
        "candidate": desired.plain(version),
        "champion": desired.plain(serving) if serving else None,
        "parity": verdict.to_json(),
        "sample": sample,
    }
    (work.out / "endpoint.json").write_text(dumps(facts), "utf-8")
    summary: dict[str, Json] = {
        "model": version.served_as,
        "version": serving.version if serving else 0,
        "candidate": version.version,
        "parity": verdict.figures.get("share"),
        "rows": verdict.figures.get("rows", 0),
    }
    return Outcome(summary, verdict)


def _held(work: Work, version: Version, state: Desired) -> Outcome:
    reason = state.held[version.adapter]
    serving = f"version {state.champion.version} serves" if state.champion else "nothing is served"
    check = Check("not rolled back", False, "a version that nobody took back", reason)
    summary = f"version {version.version} is not deployed: {reason}; {serving} (`finetune release --again` lifts this)"
    write_jsonl(work.out / "parity.jsonl", ())
    return _outcome(work, version, Verdict("deployed_endpoint", False, version.registered, summary, (check,)), None)


def _max_new_tokens(work: Work) -> int:
    return int(work.inputs["eval_report"].json("report.json")["max_new_tokens"])
