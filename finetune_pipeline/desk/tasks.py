"""The front page (all tasks), and the pages of one task: its story and the verdict on its data."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from finetune_pipeline.desk import ledger_rows, task_view
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.session import SignedIn
from finetune_pipeline.desk.task_status import TaskStatus, status_of
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import read_jsonl
from finetune_pipeline.store import TaskStore, task_names

router = APIRouter()
FAILING_SHOWN = 50


def known(task: str) -> str:
    """A task's name from the address, if there is such a task; else 404."""
    if task not in task_names():
        raise HTTPException(404, f"There is no task called “{task[:80]}”.")
    return task


Known = Annotated[str, Depends(known)]


@router.get("/")
def tasks(request: Request, user: SignedIn) -> Response:
    statuses = [status_of(name, user) for name in task_names()]
    items = [item for each in statuses for item in each.waiting]
    todo = sorted(items, key=lambda item: item.tone != "you")  # what only this person can do comes first
    return page(request, "tasks.html", "Tasks", statuses=statuses, todo=todo)


@router.get("/tasks/{task}")
def one(request: Request, user: SignedIn, task: Known) -> Response:
    state = status_of(task, user)
    if state.problem is not None:
        return page(request, "broken.html", task, 409, task=task, task_status=state)
    return page(request, "task.html", task, task=task, task_status=state, **_task_view(state))


def _task_view(state: TaskStatus) -> dict[str, Any]:
    store = TaskStore(state.name)
    found = {each.asset: each.plan.artifact for each in state.assets}
    stages = ledger_rows.chain(store)
    counted = task_view.counts(stages)
    report = found["eval_report"] or found["baseline_report"]
    decision = found["release_decision"]
    gates = [
        (each, verdict)
        for each in state.assets
        if each.asset != "release_decision" and each.plan.artifact and (verdict := each.plan.artifact.verdict)
    ]
    return {
        "counts": counted,
        "reasons": task_view.by_reason(counted.dropped) if counted else [],
        "gates": [(each, verdict, task_view.checks(verdict.checks)) for each, verdict in gates],
        "comparison": task_view.comparison(report.json("report.json")) if report else [],
        "compared_in": report.asset if report else "",
        "decision": decision.json("decision.json") if decision else None,
        "decision_checks": task_view.checks(decision.verdict.checks) if decision and decision.verdict else [],
        "model": found["registered_model"].json("model.json") if found["registered_model"] else None,
        "endpoint": task_view.facts(found["deployed_endpoint"].summary) if found["deployed_endpoint"] else [],
        "asked": found["deployed_endpoint"].json("endpoint.json").get("sample") if found["deployed_endpoint"] else None,
        "traffic": task_view.facts(found["traffic_report"].summary) if found["traffic_report"] else [],
        "reports": task_view.reports(found),
        "found": found,
    }


@router.get("/tasks/{task}/quality")
def quality(request: Request, user: SignedIn, task: Known) -> Response:
    _, store = open_task(task)
    artifact, clean = store.current("data_quality"), store.current("clean_examples")
    if artifact is None or artifact.verdict is None:
        return page(request, "quality.html", "Data quality", task=task, verdict=None)
    failing = list(read_jsonl(artifact.path("rows.jsonl")))
    shown = failing[:FAILING_SHOWN]
    return page(
        request,
        "quality.html",
        "Data quality",
        task=task,
        verdict=artifact.verdict,
        made_at=artifact.manifest.get("made_at", ""),
        outdated=clean is None or artifact.verdict.about != clean.content_hash,
        checks=task_view.checks(artifact.verdict.checks),
        docs="docs/index.html" in artifact.manifest["files"],
        failing=shown,
        failing_count=len(failing),
        texts=ledger_rows.texts(clean, [row["id"] for row in shown]) if clean and shown else {},
    )
