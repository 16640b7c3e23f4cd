"""Who is asking: the signed cookie, and the CSRF token on every form.

    @router.get("/")
    def tasks(request: Request, user: SignedIn) -> Response: ...
    @router.post("/tasks/{task}/review")
    def judge(request: Request, user: SignedIn, form: CheckedForm) -> Response: ...

The cookie holds {"user", "stamp", "session", "csrf", "flash"}, signed but readable: no secret but the session's id,
which counts as long as the session is open on the server (open_sessions.py). It is HttpOnly and SameSite=Lax, and
Secure where the page came over https (a proxy on this machine says so in X-Forwarded-Proto).
"""

from __future__ import annotations

import hmac
import secrets
import time
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Depends, HTTPException, Request
from starlette.datastructures import FormData
from starlette.middleware.sessions import SessionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune_pipeline.desk import open_sessions, users
from finetune_pipeline.desk.open_sessions import DAYS

COOKIE = "finetune_desk"

Tone = Literal["good", "note", "bad"]


class SignedOut(Exception):
    """Nobody is signed in; the app sends the browser to the login page, and back to `wanted` afterwards."""

    def __init__(self, wanted: str) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class Sessions:
    """Starlette's session cookie, with the Secure flag exactly where the page came over https."""

    def __init__(self, app: ASGIApp, secret: str) -> None:
        plain = SessionMiddleware(app, secret, COOKIE, max_age=DAYS * 86400, same_site="lax")
        secure = SessionMiddleware(app, secret, COOKIE, max_age=DAYS * 86400, same_site="lax", https_only=True)
        self._by_scheme = {"https": secure}
        self._plain = plain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._by_scheme.get(scope.get("scheme", "http"), self._plain)(scope, receive, send)


def sign_in(request: Request, name: str) -> None:
    """Begin a session; everything of the old one goes, its CSRF token too."""
    open_sessions.end(str(request.session.get("session", "")))
    request.session.clear()
    request.session.update(user=name, stamp=users.stamp(name), session=open_sessions.begin(name, time.time()))


def sign_out(request: Request) -> None:
    """End the session on the server, so that no copy of its cookie counts any more."""
    open_sessions.end(str(request.session.get("session", "")))
    request.session.clear()


def user_of(request: Request) -> str | None:
    """The name of whoever is signed in. None where nobody is, the session ended, or the user or password changed."""
    name, kept = request.session.get("user"), request.session.get("stamp")
    now = users.stamp(name) if isinstance(name, str) else None
    if now is None or not hmac.compare_digest(now, str(kept)):
        return None
    open_ = open_sessions.is_open(str(request.session.get("session", "")), str(name), time.time())
    return str(name) if open_ else None


def signed_in(request: Request) -> str:
    """The user's name; SignedOut where there is none."""
    name = user_of(request)
    if name is None:
        wanted = request.url.path if request.method == "GET" else "/"
        raise SignedOut(wanted + (f"?{request.url.query}" if request.method == "GET" and request.url.query else ""))
    request.state.user = name
    return name


def login_address(wanted: str) -> str:
    return "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='')}"


def local_address(wanted: str) -> str:
    """`wanted` if it is a page of the desk, else "/": a login must not send people elsewhere."""
    plain = wanted.isprintable() and "\\" not in wanted
    return wanted if plain and wanted.startswith("/") and not wanted.startswith("//") else "/"


def csrf_token(request: Request) -> str:
    if "csrf" not in request.session:
        request.session["csrf"] = secrets.token_urlsafe(24)
    return str(request.session["csrf"])


async def checked_form(request: Request) -> FormData:
    """The posted form, if it carries the token of this session; else 403."""
    form = await request.form(max_files=0, max_fields=500)
    expected, given = request.session.get("csrf"), form.get("csrf")
    if not expected or not isinstance(given, str) or not hmac.compare_digest(given.encode(), str(expected).encode()):
        raise HTTPException(403, "This form is too old, or did not come from the desk. Go back, reload, and try again.")
    return form


def text_of(form: FormData, name: str) -> str:
    """A field of the form with plain line ends (browsers send CRLF), or ""."""
    value = form.get(name)
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""


def flash(request: Request, tone: Tone, text: str) -> None:
    """Say something on the next page."""
    request.session["flash"] = {"tone": tone, "text": text}


SignedIn = Annotated[str, Depends(signed_in)]
CheckedForm = Annotated[FormData, Depends(checked_form)]
