"""Settings of a user: single-key shortcuts on the pages of the review.

POST /settings/shortcuts    on=yes or on=no, and `next`, the page to return to
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from finetune_pipeline.desk import users
from finetune_pipeline.desk.session import CheckedForm, SignedIn, flash, local_address, text_of

router = APIRouter()


@router.post("/settings/shortcuts")
def shortcuts(request: Request, user: SignedIn, form: CheckedForm) -> Response:
    on = text_of(form, "on") == "yes"
    users.set_shortcuts(user, on)
    state = "on" if on else "off"
    flash(request, "note", f"Single-key shortcuts are {state} for you; the setting is saved.")
    return RedirectResponse(local_address(text_of(form, "next") or "/"), 303)
