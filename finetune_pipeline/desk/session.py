"""The signed session cookie, and the CSRF token of every form.

    @router.get("/")
    def tasks(request: Request, user: SignedIn) -> Response: ...
    @router.post("/tasks/{task}/review")
    def record(request: Request, user: SignedIn, form: CheckedForm) -> Response: ...

The cookie holds {"user", "stamp", "session", "csrf", "flash"}, signed but readable; its only secret is the session id,
which is valid while the session is open on the server (open_sessions.py). It is HttpOnly and SameSite=Lax, and Secure
if the page was requested over https (a proxy on this machine sets X-Forwarded-Proto)."""

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
    """No user is signed in; the app redirects to the login page, and after the sign-in to `target`."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target


class Sessions:
    """Starlette's session cookie, with the Secure flag if the page was requested over https."""

    def __init__(self, app: ASGIApp, secret: str) -> None:
        plain = SessionMiddleware(app, secret, COOKIE, max_age=DAYS * 86400, same_site="lax")
        secure = SessionMiddleware(app, secret, COOKIE, max_age=DAYS * 86400, same_site="lax", https_only=True)
        self._by_scheme = {"https": secure}
        self._plain = plain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._by_scheme.get(scope.get("scheme", "http"), self._plain)(scope, receive, send)


def sign_in(request: Request, name: str) -> None:
    """Begin a session; the old one and its CSRF token are deleted."""
    open_sessions.end(str(request.session.get("session", "")))
    request.session.clear()
    request.session.update(user=name, stamp=users.stamp(name), session=open_sessions.begin(name, time.time()))


def sign_out(request: Request) -> None:
    """End the session on the server, so that copies of its cookie are invalid."""
    open_sessions.end(str(request.session.get("session", "")))
    request.session.clear()


def user_of(request: Request) -> str | None:
    """The signed-in user; None if there is none, the session ended, or the user or password changed."""
    name, stamp = request.session.get("user"), request.session.get("stamp")
    current = users.stamp(name) if isinstance(name, str) else None
    if current is None or not hmac.compare_digest(current, str(stamp)):
        return None
    open_ = open_sessions.is_open(str(request.session.get("session", "")), str(name), time.time())
    return str(name) if open_ else None


def signed_in(request: Request) -> str:
    """The name of the signed-in user. SignedOut if there is none."""
    name = user_of(request)
    if name is None:
        target = request.url.path if request.method == "GET" else "/"
        raise SignedOut(target + (f"?{request.url.query}" if request.method == "GET" and request.url.query else ""))
    request.state.user = name
    return name


def login_address(target: str) -> str:
    """The URL of the login page that continues at `target`."""
    return "/login" if target == "/" else f"/login?next={quote(target, safe='')}"


def local_address(target: str) -> str:
    """`target` if it is a path of the desk, else "/": no redirect to other sites."""
    plain = target.isprintable() and "\\" not in target
    return target if plain and target.startswith("/") and not target.startswith("//") else "/"


def csrf_token(request: Request) -> str:
    """The CSRF token of this session; created if missing."""
    if "csrf" not in request.session:
        request.session["csrf"] = secrets.token_urlsafe(24)
    return str(request.session["csrf"])


async def checked_form(request: Request) -> FormData:
    """The posted form if it contains the CSRF token of this session; else 403."""
    form = await request.form(max_files=0, max_fields=500)
    expected, sent = request.session.get("csrf"), form.get("csrf")
    if not expected or not isinstance(sent, str) or not hmac.compare_digest(sent.encode(), str(expected).encode()):
        raise HTTPException(403, "This form has expired. Go back, reload the page, and try again.")
    return form


def text_of(form: FormData, name: str) -> str:
    """A field of the form with LF line ends (browsers send CRLF); "" if missing."""
    value = form.get(name)
    return value.replace("\r\n", "\n") if isinstance(value, str) else ""


def flash(request: Request, tone: Tone, text: str) -> None:
    """Show a message on the next page."""
    request.session["flash"] = {"tone": tone, "text": text}


SignedIn = Annotated[str, Depends(signed_in)]
CheckedForm = Annotated[FormData, Depends(checked_form)]
