"""The routes of the review: one row at a time, a verdict for each, and the result of the gate so far.

    GET  /tasks/support_tickets/review                 the next row that needs this reviewer
         ?row=9f1c20e4a7b35d68                         this row (back, or to change a verdict)
         ?after=9f1c20e4a7b35d68                       the next one after that row (skip)
         ?row=...&edit=1                               with the form for its answer
    POST /tasks/support_tickets/review                 row, content_hash, decision, and the answer's fields or a note;
                                                       decision swap: the rejected answer is the better one
    POST /tasks/support_tickets/review/undo            deletes the reviewer's last verdict

A verdict is valid for exactly the content that was shown: when the data changed meanwhile, nothing is saved, and the
page says so. The same when other reviewers gave the row all its verdicts meanwhile: one more could turn a majority into
a tie. An edit is cleaned by the rules for every row (review/edits.py) before it is saved.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData

from finetune_pipeline.clean.row_cleaner import RowDropped
from finetune_pipeline.desk.answer_form import EditedAnswer, read, shown, with_errors
from finetune_pipeline.desk.form_fields import WHOLE, form_fields
from finetune_pipeline.desk.labels import DECISIONS, capitalized, spelled
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.review_pages import MAX_NOTE, NotSaved, finished_page, row_page
from finetune_pipeline.desk.review_session import ReviewSession, open_review
from finetune_pipeline.desk.session import CheckedForm, SignedIn, flash, text_of
from finetune_pipeline.desk.tasks import Known
from finetune_pipeline.records import SILENT, Example, Review
from finetune_pipeline.review import history, verdict_store
from finetune_pipeline.review.edits import Edits, without_personal
from finetune_pipeline.store import machine_lock

router = APIRouter()
FIELD = "field:"  # prefix of the answer's fields in the posted form


@router.get("/tasks/{task}/review")
def show(request: Request, user: SignedIn, task: Known, row: str = "", after: str = "", edit: bool = False) -> Response:
    session = open_review(task, user)
    if session is None:
        return page(request, "review_none.html", "Review", task=task)
    example = session.queue.row(row) if row else session.queue.next_after(after or None)
    if row and example is None:
        raise HTTPException(404, "This row is not in the sample (any more).")
    if example is None:
        return finished_page(request, session)
    return row_page(request, session, example, form_fields(session.task.answer, example.completion) if edit else [])


@router.post("/tasks/{task}/review")
def record_verdict(request: Request, user: SignedIn, task: Known, form: CheckedForm) -> Response:
    with machine_lock(f"{task}-verdicts", SILENT, ""):  # no other verdict is saved between check and saving
        return _record(request, user, task, form)


@router.post("/tasks/{task}/review/undo")
def undo(request: Request, user: SignedIn, task: Known, form: CheckedForm) -> Response:
    session = open_review(task, user)
    last = session.queue.last if session else None
    if session is None or last is None:
        flash(request, "note", "There is no verdict to undo.")
        return RedirectResponse(f"/tasks/{task}/review", 303)
    verdict_store.withdraw(session.store, last)
    flash(request, "note", f"Undone: your verdict “{DECISIONS[last.decision]}” on this row.")
    return RedirectResponse(f"/tasks/{task}/review?row={last.id}", 303)


def _record(request: Request, user: str, task: str, form: FormData) -> Response:
    session, id_ = open_review(task, user), text_of(form, "row")
    row = session.queue.row(id_) if session else None
    if session is None or row is None or row.content_hash != text_of(form, "content_hash"):
        message = "The data changed while this row was open, so your verdict was not saved. Please review it again."
        flash(request, "bad", message)
        return RedirectResponse(f"/tasks/{task}/review" + (f"?row={id_}" if row else ""), 303)
    if session.queue.is_taken(row):
        return _too_late(request, session, row, form)
    note = text_of(form, "note")
    match text_of(form, "decision"):
        case "edit":
            return _edit(request, session, row, form)
        case "swap" if row.rejected is not None:
            return _swap(request, session, row, row.rejected)
        case "approve":
            return _save(request, session, row, "approve", note)
        case "reject":
            return _save(request, session, row, "reject", note)
    raise HTTPException(400, "A verdict is approve, reject or edit.")


def _too_late(request: Request, session: ReviewSession, row: Example, form: FormData) -> Response:
    """Other reviewers gave the row all its verdicts. The page shows what was typed, so that it is not lost."""
    is_edit = text_of(form, "decision") == "edit"
    controls = form_fields(session.task.answer, row.completion) if is_edit else []
    typed = [(control.title, shown(control, text_of(form, FIELD + control.name))) for control in controls]
    unsaved = [(title, text) for title, text in (*typed, ("Note", text_of(form, "note"))) if text.strip()]
    return row_page(request, session, row, [], NotSaved(409, unsaved=unsaved, too_late=True))


def _edit(request: Request, session: ReviewSession, row: Example, form: FormData) -> Response:
    posted = {name.removeprefix(FIELD): text_of(form, name) for name in form if name.startswith(FIELD)}
    edited, masked, note = read(session.task.answer, posted, row.completion), False, text_of(form, "note")
    if not edited.errors:
        edited, masked = _cleaned(session, row, edited.text)
    if edited.errors:
        controls = with_errors(form_fields(session.task.answer, row.completion), posted, edited)
        return row_page(request, session, row, controls, NotSaved(422, edited.errors, note))
    if edited.text == row.completion:
        return _save(request, session, row, "approve", note)
    return _save(request, session, row, "edit", note, edited.text, masked)


def _swap(request: Request, session: ReviewSession, row: Example, rejected: str) -> Response:
    """Save an edit to the rejected answer: the review makes the one that was chosen the rejected one."""
    edited, masked = _cleaned(session, row, rejected)
    if not edited.errors:
        return _save(request, session, row, "edit", "", edited.text, masked)
    message = f"The rejected answer cannot be learned ({edited.errors[WHOLE]}). Correct the answer, or reject the row."
    flash(request, "bad", message)
    return RedirectResponse(f"/tasks/{session.task.name}/review?row={row.id}", 303)


def _cleaned(session: ReviewSession, row: Example, text: str) -> tuple[EditedAnswer, bool]:
    """The edit after cleaning, and whether personal data was masked in it; or the reason for which cleaning would drop
    the row, as an error."""
    try:
        cleaned, rules = Edits(session.task).applied(row, text)
    except RowDropped as dropped:
        reason = f"{spelled(dropped.reason)}: {dropped.detail}" if dropped.detail else spelled(dropped.reason)
        return EditedAnswer(text, {WHOLE: reason}), False
    return EditedAnswer(cleaned.completion), any(rule.startswith("pii-") for rule in rules)


def _save(
    request: Request,
    session: ReviewSession,
    row: Example,
    decision: Literal["approve", "reject", "edit"],
    note: str,
    completion: str | None = None,
    masked: bool = False,
) -> Response:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    note = note.strip()[:MAX_NOTE]
    review = Review(row.id, row.content_hash, session.reviewer, decision, now, completion, note)
    review = without_personal(review, session.task)
    history.open_round(session.store, session.sample)
    verdict_store.save(session.store, review)
    hidden = " Personal data was replaced in your text." if masked or review.note != note else ""
    flash(request, "good", f"{capitalized(DECISIONS[decision])} row {session.queue.number(row)}.{hidden}")
    return RedirectResponse(f"/tasks/{session.task.name}/review?after={row.id}", 303)
