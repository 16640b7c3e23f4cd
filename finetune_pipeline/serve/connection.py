"""The connection behind a request: its body, whether the client is still there, streams that give back what they hold.

What it is not: what is asked or answered (endpoint.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import ExitStack
from typing import TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from finetune_pipeline.serve.chat import ApiError

MAX_BODY = 4 << 20
T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


class Stream(StreamingResponse):
    """Server-sent events that give back what the request holds, even if the client left before the first piece."""

    def __init__(self, pieces: AsyncIterator[str], headers: Mapping[str, str], held: ExitStack) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers={**headers, "cache-control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._held.close()


async def body_of(http: Request) -> bytes:
    """The body, up to 4 MB. ApiError 413 beyond."""
    parts, size = [], 0
    async for part in http.stream():
        size += len(part)
        if size > MAX_BODY:
            raise ApiError(413, f"the body is larger than {MAX_BODY >> 20} MB; shorten `messages`", "body_too_large")
        parts.append(part)
    return b"".join(parts)


async def while_connected(http: Request, work: Awaitable[T]) -> T:
    """The result of `work`; ClientGone (and `work` cancelled) when the client hangs up first."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_hang_up(http))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        watching.cancel()


async def _hang_up(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
