"""Render a template as a page. All output is escaped; scripts and styles are static files of the desk.

return page(request, "tasks.html", "Tasks", statuses=statuses)
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from finetune_pipeline.desk import labels, users
from finetune_pipeline.desk.session import csrf_token
from finetune_pipeline.statistics.formatting import percent, percent_down

FILTERS = {
    "about": labels.about,
    "bare": labels.bare,
    "decision": labels.decision,
    "violation": labels.violation,
    "label": labels.label,
    "number": labels.number,
    "percent": percent,
    "percent_down": percent_down,
    "spelled": labels.spelled,
    "state": labels.state,
    "when": labels.when,
}


def environment() -> Environment:
    """The Jinja environment: autoescape for every template, and an error for an undefined name."""
    jinja = Environment(
        loader=PackageLoader("finetune_pipeline.desk"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(FILTERS)
    jinja.globals.update(plural=labels.plural, outcomes=labels.OUTCOMES)
    return jinja


_TEMPLATES = environment()


def page(request: Request, template: str, title: str, status: int = 200, **context: Any) -> HTMLResponse:
    """A page with the user's name and, once, the message of `session.flash`."""
    session = request.session
    user: str | None = getattr(request.state, "user", None)  # set by session.signed_in on pages that require a user
    flash = session.pop("flash", None) if "flash" in session else None
    text = _TEMPLATES.get_template(template).render(
        title=title,
        user=user,
        csrf=csrf_token(request),
        flash=flash,
        path=request.url.path,
        shortcuts=user is not None and users.shortcuts(user),
        **context,
    )
    return HTMLResponse(text, status)
