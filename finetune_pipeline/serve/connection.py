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
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from finetune_pipeline.serve.openai_schema import ApiError

MAX_BODY = 4 << 20
STALLED_SECONDS = 60.0  # without a byte sent or taken by the client: its connection is given up
T = TypeVar("T")


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


class Stream(StreamingResponse):
    """Server-sent events that give back what the request holds, even if the client left before the first piece."""

    def __init__(self, pieces: AsyncIterator[str], headers: Mapping[str, str], held: ExitStack) -> None:
        super().__init__(pieces, media_type="text/event-stream", headers={**headers, "cache-control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def taken(message: Message) -> None:
            await asyncio.wait_for(send(message), STALLED_SECONDS)  # a client that reads nothing holds an adapter

        try:
            await super().__call__(scope, receive, taken)
        except TimeoutError:
            raise ClientGone from None
        finally:
            self._held.close()


async def body_of(http: Request) -> bytes:
    """The body, up to 4 MB. ApiError 413 beyond, 408 when no more of it comes; ClientGone when the client hangs up."""
    parts, size = [], 0
    pieces = http.stream()
    try:
        while (part := await asyncio.wait_for(anext(pieces, None), STALLED_SECONDS)) is not None:
            size += len(part)
            if size > MAX_BODY:
                raise ApiError(
                    413, f"the body is larger than {MAX_BODY >> 20} MB; shorten `messages`", "body_too_large"
                )
            parts.append(part)
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        message = f"no more of the body came for {STALLED_SECONDS:.0f} s"
        raise ApiError(408, message, "body_stalled", headers={"connection": "close"}) from None
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
