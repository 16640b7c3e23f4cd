"""The review: one row at a time, a verdict each, and what the gate says so far.

    GET  /tasks/support_tickets/review                 the next row that needs this expert
         ?row=9f1c20e4a7b35d68                         this very row (back, or to change a verdict)
         ?after=9f1c20e4a7b35d68                       the next one after that (skip)
         ?row=...&edit=1                               with the answer as a form
    POST /tasks/support_tickets/review                 row, content, decision, and the answer's fields or a note
    POST /tasks/support_tickets/review/undo            takes the expert's last verdict back

A verdict is for exactly the content that was shown: when the data changed meanwhile, nothing is saved, and the page
says so. The same where colleagues gave the row all its verdicts meanwhile: one more could turn a majority into a tie.
A correction goes through the rules for every row (review/edits.py) before it is kept.

What it is not: the gate's arithmetic (review/gate.py), or where verdicts lie (review/verdict_store.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import FormData

from finetune_pipeline.clean.answers import problem
from finetune_pipeline.clean.row_cleaner import RowDropped
from finetune_pipeline.config import Task
from finetune_pipeline.desk import answerform, task_view
from finetune_pipeline.desk.labels import spelled
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.review_queue import ReviewQueue, queue_of
from finetune_pipeline.desk.session import CheckedForm, SignedIn, flash, text_of
from finetune_pipeline.desk.tasks import Known
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import Artifact, Example, Message, Review, Silent, Verdict
from finetune_pipeline.review import gate, history, verdict_store
from finetune_pipeline.review.edits import Edits, without_personal
from finetune_pipeline.review.flagged import Flagged, flagged_in, flagged_rows
from finetune_pipeline.store import TaskStore, machine_lock

router = APIRouter()
SAID = {"approve": "Approved", "reject": "Rejected", "edit": "Corrected"}
LONGEST_NOTE = 2000


@dataclass(frozen=True)
class ReviewSession:
    """One expert before the sample as it lies now."""

    task: Task
    store: TaskStore
    sample: Artifact
    reviews: Sequence[Review]
    queue: ReviewQueue
    person: str
    pairs: tuple[Flagged, ...] = ()

    def against(self, row: Example) -> list[Example]:
        """The rows that ask nearly the same as this one and answer differently."""
        return [other for pair in self.pairs if row in pair.rows for other in pair.rows if other != row]

    @property
    def verdict(self) -> Verdict:
        """What the gate would say now; it judges the rows that have all their verdicts."""
        about = str(self.sample.manifest["inputs"].get("clean_examples", ""))
        drawn = history.round_of(self.sample)
        decided = history.load_history(self.store).decisions_in(drawn.number)
        return gate.evaluate_review(self.queue.rows, self.reviews, self.task.review, about, drawn, decided)

    @property
    def outdated(self) -> bool:
        clean = self.store.current("clean_examples")
        return clean is not None and self.sample.manifest["inputs"].get("clean_examples") != clean.content_hash


@router.get("/tasks/{task}/review")
def show(request: Request, user: SignedIn, task: Known, row: str = "", after: str = "", edit: bool = False) -> Response:
    at = open_review(task, user)
    if at is None:
        return page(request, "review_none.html", "Review", task=task)
    found = at.queue.row(row) if row else at.queue.next_after(after or None)
    if row and found is None:
        raise HTTPException(404, "This row is not in the sample (any more).")
    if found is None:
        return _finished(request, at)
    form = answerform.fields(at.task.answer, found.completion) if edit else []
    return _row_page(request, at, found, form)


@router.post("/tasks/{task}/review")
def record_verdict(request: Request, user: SignedIn, task: Known, form: CheckedForm) -> Response:
    with machine_lock(f"{task}-verdicts", Silent(), ""):  # nobody's verdict comes in between the look and the saving
        return _judged(request, user, task, form)


def _judged(request: Request, user: str, task: str, form: FormData) -> Response:
    at, id_ = open_review(task, user), text_of(form, "row")
    row = at.queue.row(id_) if at else None
    if at is None or row is None or row.content_hash != text_of(form, "content_hash"):
        flash(
            request,
            "bad",
            "The data changed while this row was open, so your verdict was not saved. Please look again.",
        )
        return RedirectResponse(f"/tasks/{task}/review" + (f"?row={id_}" if row else ""), 303)
    decision = text_of(form, "decision")
    if at.queue.taken(row):
        return _too_late(request, at, row, form)
    if decision == "edit":
        return _edit(request, at, row, form)
    if decision not in ("approve", "reject"):
        raise HTTPException(400, "A verdict is approve, reject or edit.")
    return _keep(request, at, row, decision, text_of(form, "note"))


@router.post("/tasks/{task}/review/undo")
def undo(request: Request, user: SignedIn, task: Known, form: CheckedForm) -> Response:
    at = open_review(task, user)
    last = at.queue.last if at else None
    if at is None or last is None:
        flash(request, "note", "There is nothing to take back.")
        return RedirectResponse(f"/tasks/{task}/review", 303)
    verdict_store.withdraw(at.store, last)
    flash(request, "note", f"Taken back: your verdict “{SAID[last.decision].lower()}” on this row.")
    return RedirectResponse(f"/tasks/{task}/review?row={last.id}", 303)


def open_review(name: str, person: str) -> ReviewSession | None:
    """None where no sample was drawn yet."""
    task, store = open_task(name)
    sample = store.current("review_sample")
    if sample is None:
        return None
    rows, pairs = list(sample.examples("sample.jsonl")), tuple(flagged_in(sample))
    flagged = flagged_rows(pairs, rows)
    reviews = verdict_store.load_for(store, task, [*rows, *flagged])
    return ReviewSession(
        task, store, sample, reviews, queue_of(rows, reviews, task.review, person, flagged), person, pairs
    )


def _too_late(request: Request, at: ReviewSession, row: Example, form: FormData) -> Response:
    """Colleagues judged the row meanwhile. What was typed is shown once more, so that it is not lost."""
    controls = answerform.fields(at.task.answer, row.completion) if text_of(form, "decision") == "edit" else []
    typed = [(each.title, answerform.shown(each, text_of(form, f"field:{each.name}"))) for each in controls]
    given = [*typed, ("Note", text_of(form, "note"))]
    unsaved = [(title, text) for title, text in given if text.strip()]
    return _row_page(request, at, row, [], status=409, unsaved=unsaved, too_late=True)


def _edit(request: Request, at: ReviewSession, row: Example, form: FormData) -> Response:
    posted = {name.removeprefix("field:"): text_of(form, name) for name in form if name.startswith("field:")}
    edited = answerform.read(at.task.answer, posted, row.completion)
    masked = False
    if not edited.complaints:
        edited, masked = _cleaned(at, row, edited.text)
    if edited.complaints:
        again = answerform.with_complaints(answerform.fields(at.task.answer, row.completion), posted, edited)
        return _row_page(request, at, row, again, edited.complaints, text_of(form, "note"), status=422)
    if edited.text == row.completion:
        return _keep(request, at, row, "approve", text_of(form, "note"))
    return _keep(request, at, row, "edit", text_of(form, "note"), edited.text, masked)


def _cleaned(at: ReviewSession, row: Example, text: str) -> tuple[answerform.Edited, bool]:
    """The correction as the pipeline would train on it, and whether personal data was taken out of it; or why it would
    not be trained on. What is kept here is committed with the task, so it has to be clean already."""
    try:
        cleaned, slugs = Edits(at.task).applied(row, text)
    except RowDropped as refused:
        said = f"{spelled(refused.reason)}: {refused.detail}" if refused.detail else spelled(refused.reason)
        return answerform.Edited(text, {answerform.WHOLE: said}), False
    return answerform.Edited(cleaned.completion), any(slug.startswith("pii-") for slug in slugs)


def _keep(
    request: Request,
    at: ReviewSession,
    row: Example,
    decision: str,
    note: str,
    answer: str | None = None,
    masked: bool = False,
) -> Response:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    kind = {"approve": "approve", "reject": "reject"}.get(decision, "edit")
    note = note.strip()[:LONGEST_NOTE]
    review = without_personal(Review(row.id, row.content_hash, at.person, kind, now, answer, note), at.task)  # type: ignore[arg-type]
    history.open_round(at.store, at.sample)
    verdict_store.save(at.store, review)
    hidden = " Personal data was replaced in what you wrote." if masked or review.note != note else ""
    flash(request, "good", f"{SAID[decision]} row {at.queue.number(row)}.{hidden}")
    return RedirectResponse(f"/tasks/{at.task.name}/review?after={row.id}", 303)


def _row_page(
    request: Request,
    at: ReviewSession,
    row: Example,
    form: list[answerform.Field],
    complaints: Mapping[str, str] | None = None,
    note: str = "",
    status: int = 200,
    unsaved: Sequence[tuple[str, str]] = (),
    too_late: bool = False,
) -> Response:
    verdict = at.verdict
    taken = at.queue.taken(row)
    return page(
        request,
        "review.html",
        "Review",
        status,
        task=at.task.name,
        at=at,
        row=row,
        earlier=earlier(row),
        table=answerform.rows(row.completion),
        complaint=problem(row.completion, at.task.answer),
        form=[] if taken else form,
        taken=taken,
        judges=[review.reviewer for review in verdict_store.by_row([row], at.reviews)[row.id]],
        too_late=too_late,
        unsaved=unsaved,
        complaints=complaints or {},
        whole=answerform.WHOLE,
        note=note,
        before=at.queue.before(row),
        said=at.queue.said(row),
        guidance=answerform.guidance(at.task.answer),
        verdict=verdict,
        checks=task_view.checks(verdict.checks),
    )


def earlier(row: Example) -> list[Message]:
    """The turns of a conversation but the question and the answer, found by their place: an earlier turn may read as
    the question does."""
    last = len(row.messages) - 1
    asked = max((n for n, message in enumerate(row.messages) if message.role == "user"), default=-1)
    answer = last if row.ends_with_completion else -1
    return [message for n, message in enumerate(row.messages) if n not in (asked, answer)]


def _finished(request: Request, at: ReviewSession) -> Response:
    verdict = at.verdict
    state = verdict_store.progress(at.queue.rows, at.reviews, at.task.review)
    mine = {review.id: review for review in at.queue.mine}
    return page(
        request,
        "review_done.html",
        "Review",
        task=at.task.name,
        at=at,
        state=state,
        verdict=verdict,
        checks=task_view.checks(verdict.checks),
        given=[(number, row, mine.get(row.id)) for number, row in enumerate(at.queue.rows, 1)],
        taken_up=_taken_up(at),
    )


def _taken_up(at: ReviewSession) -> bool:
    """Did the pipeline already go on with these very verdicts?"""
    done = at.store.current("expert_review")
    made_from = done.manifest["inputs"].get("review_sample") if done else None
    return made_from == at.sample.content_hash
