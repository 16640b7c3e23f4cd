"""The ledger's page: every row that left and every row that was fixed, with the reason and where it came from.

/tasks/support_tickets/ledger?kind=dropped&why=near-duplicate&page=2
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
    stages = ledger_rows.chain(store)
    everything = {name: ledger_rows.entries(stages, name) for name in ledger_rows.FILES}
    found = [entry for entry in everything[kind] if why in ("", entry.why)]
    pages = max(1, -(-len(found) // ROWS))
    number = min(max(at, 1), pages)
    shown = found[(number - 1) * ROWS : number * ROWS]
    return page(
        request,
        "ledger.html",
        "Ledger",
        task=task,
        begun="raw_examples" in stages,
        kind=kind,
        why=why,
        rows=[ledger_rows.masked(entry) for entry in shown],
        total=len(found),
        first=(number - 1) * ROWS + 1,
        number=number,
        pages=pages,
        sums={name: len(entries) for name, entries in everything.items()},
        reasons=Counter(entry.why for entry in everything[kind]).most_common(),
        texts=ledger_rows.texts(stages["raw_examples"], [entry.id for entry in shown]) if shown else {},
        address=lambda **changed: address(task, **{"kind": kind, "why": why, "at": 1, **changed}),
    )


def address(task: str, kind: str, why: str, at: int) -> str:
    wanted = {"kind": kind, **({"why": why} if why else {}), **({"at": at} if at > 1 else {})}
    return f"/tasks/{task}/ledger?{urlencode(wanted)}"
