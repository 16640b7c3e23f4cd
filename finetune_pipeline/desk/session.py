"""Who is asking: the signed cookie, the CSRF token on every form, and the slowing of guessed passwords.

    @router.get("/")
    def tasks(request: Request, user: SignedIn) -> Response: ...
    @router.post("/tasks/{task}/review")
    def judge(request: Request, user: SignedIn, form: CheckedForm) -> Response: ...

The cookie holds {"user", "stamp", "csrf", "flash"}, signed but readable: nothing secret goes in. It is HttpOnly and
SameSite=Lax, and Secure where the page came over https (a proxy on this machine says so in X-Forwarded-Proto).
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import Depends, HTTPException, Request
from starlette.datastructures import FormData
from starlette.middleware.sessions import SessionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune_pipeline.desk import users

COOKIE = "finetune_desk"
DAYS = 7
FREE_TRIES = 3
LONGEST_WAIT = 60.0
MOST_REMEMBERED = 10_000

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
    request.session.clear()
    request.session.update(user=name, stamp=users.stamp(name))


def signed_in(request: Request) -> str:
    """The user's name. SignedOut if there is none, or the user or the password changed since."""
    name, kept = request.session.get("user"), request.session.get("stamp")
    now = users.stamp(name) if isinstance(name, str) else None
    if now is None or not hmac.compare_digest(now, str(kept)):
        wanted = request.url.path if request.method == "GET" else "/"
        raise SignedOut(wanted + (f"?{request.url.query}" if request.method == "GET" and request.url.query else ""))
    return str(name)


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


class Attempts:
    """Slows down guessing: after three wrong passwords of one name or one address, each further one doubles the wait,
    up to a minute. In memory: a restart forgets, and scrypt still takes its time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: dict[str, tuple[int, float]] = {}

    def wait(self, *who: str) -> float:
        """Seconds until another try is taken; 0 when it may be made now."""
        return max(0.0, *(self._until(key) - self._clock() for key in who))

    def failed(self, *who: str) -> None:
        if len(self._failed) > MOST_REMEMBERED:
            self._failed = {key: seen for key, seen in self._failed.items() if self._until(key) > self._clock()}
        for key in who:
            self._failed[key] = (self._failed.get(key, (0, 0.0))[0] + 1, self._clock())

    def succeeded(self, *who: str) -> None:
        for key in who:
            self._failed.pop(key, None)

    def _until(self, key: str) -> float:
        count, last = self._failed.get(key, (0, float("-inf")))
        extra = count - FREE_TRIES
        return last + min(LONGEST_WAIT, 2.0 ** min(extra, 10)) if extra >= 0 else float("-inf")


SignedIn = Annotated[str, Depends(signed_in)]
CheckedForm = Annotated[FormData, Depends(checked_form)]
