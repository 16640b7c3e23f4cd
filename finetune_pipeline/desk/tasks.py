"""The front page (all tasks), and two pages of one task: the overview and the data quality."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Response

from finetune_pipeline.desk import ledger_rows, task_view
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.session import SignedIn
from finetune_pipeline.desk.task_status import TaskStatus, status_of
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import read_jsonl
from finetune_pipeline.release.registration import ModelRecord
from finetune_pipeline.serve.deployment_report import DeploymentReport
from finetune_pipeline.store import TaskStore, task_names

router = APIRouter()
MAX_FAILING_ROWS = 50


def known(task: str) -> str:
    """The name of a task in the URL; 404 if there is no such task."""
    if task not in task_names():
        raise HTTPException(404, f"There is no task named “{task[:80]}”.")
    return task


Known = Annotated[str, Depends(known)]


@router.get("/")
def tasks(request: Request, user: SignedIn) -> Response:
    statuses = [status_of(name, user) for name in task_names()]
    items = [item for status in statuses for item in status.todo]
    todo = sorted(items, key=lambda item: item.tone != "you")  # first what needs this user
    return page(request, "tasks.html", "Tasks", statuses=statuses, todo=todo)


@router.get("/tasks/{task}")
def overview(request: Request, user: SignedIn, task: Known) -> Response:
    status = status_of(task, user)
    if status.problem is not None:
        return page(request, "broken.html", task, 409, task=task, task_status=status)
    return page(request, "task.html", task, task=task, task_status=status, **_overview_values(status))


def _overview_values(status: TaskStatus) -> dict[str, Any]:
    artifacts = {asset.asset: asset.plan.artifact for asset in status.assets}
    counts = task_view.counts(ledger_rows.chain(TaskStore(status.name)))
    report = artifacts["eval_report"] or artifacts["baseline_report"]
    decision, model = artifacts["release_decision"], artifacts["registered_model"]
    endpoint, traffic = artifacts["deployed_endpoint"], artifacts["traffic_report"]
    registered: ModelRecord | None = model.json("model.json") if model else None
    deployed: DeploymentReport | None = endpoint.json("endpoint.json") if endpoint else None
    gates = [
        (asset, verdict)
        for asset in status.assets
        if asset.asset != "release_decision" and asset.plan.artifact and (verdict := asset.plan.artifact.verdict)
    ]
    return {
        "counts": counts,
        "reasons": task_view.by_reason(counts.dropped) if counts else [],
        "gates": [(asset, verdict, task_view.check_rows(verdict.checks)) for asset, verdict in gates],
        "comparison": task_view.comparison(report.json("report.json")) if report else [],
        "compared_in": report.asset if report else "",
        "decision": decision.json("decision.json") if decision else None,
        "decision_checks": task_view.check_rows(decision.verdict.checks) if decision and decision.verdict else [],
        "model": registered,
        "endpoint": task_view.facts(endpoint.summary) if endpoint else [],
        "sample": deployed["sample"] if deployed else None,
        "traffic": task_view.facts(traffic.summary) if traffic else [],
        "reports": task_view.reports(artifacts),
        "artifacts": artifacts,
    }


@router.get("/tasks/{task}/quality")
def quality(request: Request, user: SignedIn, task: Known) -> Response:
    _, store = open_task(task)
    artifact, clean = store.current("data_quality"), store.current("clean_examples")
    if artifact is None or artifact.verdict is None:
        return page(request, "quality.html", "Data quality", task=task, verdict=None)
    failing = list(read_jsonl(artifact.path("rows.jsonl")))
    shown = failing[:MAX_FAILING_ROWS]
    return page(
        request,
        "quality.html",
        "Data quality",
        task=task,
        verdict=artifact.verdict,
        made_at=artifact.manifest.get("made_at", ""),
        outdated=clean is None or artifact.verdict.about != clean.content_hash,
        checks=task_view.check_rows(artifact.verdict.checks),
        report="report.html" in artifact.manifest["files"],
        failing=shown,
        failing_count=len(failing),
        texts=ledger_rows.texts(clean, [row["id"] for row in shown]) if clean and shown else {},
    )
