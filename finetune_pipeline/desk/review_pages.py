"""The two pages of a review: one row, and the end of the sample.

return row_page(request, session, row, form)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import Request, Response

from finetune_pipeline.clean.answers import problem
from finetune_pipeline.desk import task_view
from finetune_pipeline.desk.form_fields import WHOLE, Field, guidance, table
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.review_session import ReviewSession, earlier_messages
from finetune_pipeline.records import Example
from finetune_pipeline.review import verdict_store

MAX_NOTE = 2000  # characters


@dataclass(frozen=True)
class NotSaved:
    """Why a posted verdict was not saved. `errors`: of an edit, by field. `unsaved`: what was typed, as (title, text),
    when other reviewers gave the row all its verdicts first (`too_late`)."""

    status: int
    errors: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    unsaved: Sequence[tuple[str, str]] = ()
    too_late: bool = False


SHOWN = NotSaved(status=200)  # nothing was posted


def row_page(
    request: Request, session: ReviewSession, row: Example, form: Sequence[Field], not_saved: NotSaved = SHOWN
) -> Response:
    """The page of one row, with the form for its answer if `form` is not empty."""
    verdict, is_taken = session.verdict, session.queue.is_taken(row)
    return page(
        request,
        "review.html",
        "Review",
        not_saved.status,
        task=session.task.name,
        session=session,
        row=row,
        earlier=earlier_messages(row),
        table=table(row.completion),
        rejected_table=table(row.rejected or ""),
        invalid=problem(row.completion, session.task.answer),
        form=[] if is_taken else form,
        is_taken=is_taken,
        reviewers=session.reviewers_of(row),
        not_saved=not_saved,
        max_note=MAX_NOTE,
        whole=WHOLE,
        before=session.queue.before(row),
        own=session.queue.verdict_on(row),
        guidance=guidance(session.task.answer),
        verdict=verdict,
        checks=task_view.check_rows(verdict.checks),
    )


def finished_page(request: Request, session: ReviewSession) -> Response:
    """The page for a reviewer who has no row left."""
    verdict, queue = session.verdict, session.queue
    own = {review.id: review for review in queue.own}
    return page(
        request,
        "review_done.html",
        "Review",
        task=session.task.name,
        session=session,
        progress=verdict_store.progress(queue.rows, session.reviews, session.task.review),
        verdict=verdict,
        checks=task_view.check_rows(verdict.checks),
        rows=[(number, row, own.get(row.id)) for number, row in enumerate(queue.rows, 1)],
    )
