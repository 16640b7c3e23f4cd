"""What a browser may do with our pages: one strict policy for the desk, one each for the quality report and the others.

Artifacts come from data, and data comes from strangers. Reports are shown in a sandbox without scripts, as if they came
from another site. The quality report may bring styles, inline and as files beside it; the gate writes it without
scripts, so none runs, whatever a row's text says.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = "Content-Security-Policy"
DESK = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
DATA_DOCS = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
REPORT = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
ALWAYS = {
    CSP: DESK,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "Cache-Control": "no-store",
}
LARGEST_FORM = 1_000_000  # bytes; a review's answer is a few thousand


class SecurityHeaders:
    """Puts the headers on every answer that does not bring its own, and refuses bodies larger than any form of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers.setdefault(name, value)
            await send(message)

        if _too_large(scope):
            await _refuse(with_headers)
        else:
            await self._app(scope, receive, with_headers)


def _too_large(scope: Scope) -> bool:
    """A body of unknown length counts as too large: browsers always say how long a form is."""
    given = dict(scope["headers"])
    length = given.get(b"content-length", b"")
    if b"transfer-encoding" in given:
        return True
    return bool(length) and (not length.isdigit() or int(length) > LARGEST_FORM)


async def _refuse(send: Send) -> None:
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"The desk takes forms of up to 1 MB."})
