"""The page of the ledger: every dropped row and every fix, with reason and origin.

/tasks/support_tickets/ledger?kind=dropped&why=near-duplicate&at=2      (`at`: the page)
"""

from __future__ import annotations

from collections import Counter
from typing import Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from finetune_pipeline.desk import ledger_rows
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.session import SignedIn
from finetune_pipeline.desk.tasks import Known
from finetune_pipeline.materialize import open_task

router = APIRouter()
ROWS = 50


@router.get("/tasks/{task}/ledger")
def ledger(
    request: Request,
    user: SignedIn,
    task: Known,
    kind: Literal["dropped", "fixed"] = "dropped",
    why: str = "",
    at: int = 1,
) -> Response:
    _, store = open_task(task)
    artifacts = ledger_rows.chain(store)
    by_kind = {name: ledger_rows.entries(artifacts, name) for name in ledger_rows.FILES}
    matching = [entry for entry in by_kind[kind] if why in ("", entry.why)]
    pages = max(1, -(-len(matching) // ROWS))
    number = min(max(at, 1), pages)
    shown = matching[(number - 1) * ROWS : number * ROWS]
    return page(
        request,
        "ledger.html",
        "Ledger",
        task=task,
        has_rows="raw_examples" in artifacts,
        kind=kind,
        why=why,
        rows=[ledger_rows.masked(entry) for entry in shown],
        total=len(matching),
        first=(number - 1) * ROWS + 1,
        number=number,
        pages=pages,
        sums={name: len(entries) for name, entries in by_kind.items()},
        reasons=Counter(entry.why for entry in by_kind[kind]).most_common(),
        texts=ledger_rows.texts(artifacts["raw_examples"], [entry.id for entry in shown]) if shown else {},
        address=lambda **changed: address(task, **{"kind": kind, "why": why, "at": 1, **changed}),
    )


def address(task: str, kind: str, why: str, at: int) -> str:
    """The URL of a page of the ledger; default values are left out."""
    query = {"kind": kind, **({"why": why} if why else {}), **({"at": at} if at > 1 else {})}
    return f"/tasks/{task}/ledger?{urlencode(query)}"
