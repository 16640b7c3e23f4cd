"""Security headers: a Content Security Policy each for the desk and for reports.

Artifacts contain text from untrusted data. Reports are shown in a sandbox without scripts, like pages of another site.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = "Content-Security-Policy"
DESK = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'self'"
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
LARGEST_FORM = 1_000_000  # bytes; the form of a review has a few thousand


class SecurityHeaders:
    """Middleware that adds the headers to every response that does not set them, and rejects large request bodies."""

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
            await _send_413(with_headers)
        else:
            await self._app(scope, receive, with_headers)


def _too_large(scope: Scope) -> bool:
    """Whether the body is larger than LARGEST_FORM, or of unknown length: browsers always send the length of a form."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    if b"transfer-encoding" in headers:
        return True
    return bool(length) and (not length.isdigit() or int(length) > LARGEST_FORM)


async def _send_413(send: Send) -> None:
    await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"A form can have at most 1 MB."})
