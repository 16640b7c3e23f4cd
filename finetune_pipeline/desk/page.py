"""Templates and how a page is made. Everything a template prints is escaped; scripts and styles are files of ours.

return page(request, "tasks.html", "Tasks", standings=standings)
"""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from finetune_pipeline.desk import labels, users
from finetune_pipeline.desk.session import csrf_token
from finetune_pipeline.statistics.formatting import percent

FILTERS = {
    "about": labels.about,
    "bare": labels.bare,
    "broken": labels.broken,
    "label": labels.label,
    "number": labels.number,
    "percent": percent,
    "spelled": labels.spelled,
    "state": labels.state,
    "variant": labels.variant,
    "when": labels.when,
}


def environment() -> Environment:
    """Autoescape for every template whatever its name; a name that is missing is an error, not an empty string."""
    made = Environment(
        loader=PackageLoader("finetune_pipeline.desk"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(FILTERS)
    made.globals.update(plural=labels.plural, steps=labels.STEPS, outcomes=labels.OUTCOMES)
    return made


_TEMPLATES = environment()


def page(request: Request, template: str, title: str, status: int = 200, **shown: Any) -> HTMLResponse:
    """A whole page for whoever is signed in. Takes the message that was left for the next page, if any."""
    session = request.session
    user: str | None = getattr(request.state, "user", None)  # set by session.signed_in, where a page asks for it
    flash = session.pop("flash", None) if "flash" in session else None
    text = _TEMPLATES.get_template(template).render(
        title=title,
        user=user,
        csrf=csrf_token(request),
        flash=flash,
        path=request.url.path,
        shortcuts=user is not None and users.shortcuts(user),
        **shown,
    )
    return HTMLResponse(text, status)
