"""Serve reports from the artifacts. Only files that the manifest of the artifact names are served.

    /tasks/support_tickets/reports/eval_report           the report in a frame on a page of the desk
    /tasks/support_tickets/reports/adapter?page=tokens.html     another page of that report
    /tasks/support_tickets/reports/eval_report/report.html      the report, sandboxed, without scripts

Markdown (the model card, the decision) is rendered by the desk; HTML in it is shown as text.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from markupsafe import Markup

from finetune_pipeline.desk import security_headers
from finetune_pipeline.desk.page import page as render
from finetune_pipeline.desk.session import SignedIn
from finetune_pipeline.desk.task_view import PAGES, REPORTS, reports
from finetune_pipeline.desk.tasks import Known
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import Artifact

router = APIRouter()
TYPES = {".html": "text/html", ".md": "text/plain", ".json": "text/plain", ".png": "image/png"}


@router.get("/tasks/{task}/reports/{asset}")
def framed(request: Request, user: SignedIn, task: Known, asset: str, page: str = "") -> Response:
    """The report of an asset on a page of the desk: Markdown rendered, HTML in a frame. `page`: one of its further
    pages (task_view.PAGES)."""
    if asset == "data_quality":  # has its own page
        return RedirectResponse(f"/tasks/{task}/quality", 303)
    artifact = _artifact(task, asset)
    name, title = (page, PAGES.get(asset, {}).get(page, "")) if page else REPORTS[asset]
    if not title:
        raise HTTPException(404, "There is no such page in this report.")
    file = _file(artifact, name)
    made_at = artifact.manifest.get("made_at", "")
    if file.suffix == ".md":
        text = rendered(file.read_text("utf-8"))
        return render(request, "document.html", title, task=task, text=text, made_at=made_at)
    pages = reports({asset: artifact})  # a link within the frame would have no session: it is sandboxed
    others = [(address, other) for address, other in pages if other != title]
    source = f"/tasks/{task}/reports/{asset}/{name}"
    return render(request, "frame.html", title, task=task, source=source, others=others, made_at=made_at)


@router.get("/tasks/{task}/reports/{asset}/{path:path}")
def report(user: SignedIn, task: Known, asset: str, path: str) -> Response:
    file = _file(_artifact(task, asset), path)
    if file.suffix not in TYPES:
        raise HTTPException(404, "Only reports can be shown here, not data files.")
    return FileResponse(
        file,
        media_type=TYPES[file.suffix],
        headers={
            security_headers.CSP: security_headers.REPORT,
            "Cross-Origin-Opener-Policy": "unsafe-none",
        },  # a sandboxed page has no origin
    )


def rendered(text: str) -> Markup:
    """CommonMark with tables as HTML. HTML in the text and links that are not web addresses are shown as text."""
    from markdown_it import MarkdownIt

    return Markup(MarkdownIt("commonmark", {"html": False}).enable("table").render(text))  # noqa: S704 (MarkdownIt escapes)


def _artifact(task: str, asset: str) -> Artifact:
    _, store = open_task(task)
    artifact = store.current(asset) if asset == "data_quality" or asset in REPORTS else None
    if artifact is None:
        raise HTTPException(404, "This report does not exist yet.")
    return artifact


def _file(artifact: Artifact, name: str) -> Path:
    """The path of a file that the manifest names, inside the artifact's folder; else 404."""
    path = artifact.path(name)
    if name not in artifact.manifest["files"] or not path.resolve().is_relative_to(artifact.folder.resolve()):
        raise HTTPException(404, "There is no such file in this report.")
    return path
