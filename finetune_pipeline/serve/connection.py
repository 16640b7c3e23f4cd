"""The HTTP connection of a request: reading its body, noticing that the client disconnected, streaming to it.

raw = await read_body(http)                                    # up to 4 MB
result = await while_connected(http, apply_policy(…))          # canceled when the client disconnects
return EventStream(events, headers, resources)                 # releases `resources` however it ends
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
CLIENT_STALLED_SECONDS = 60.0  # without a byte read or written by the client: its connection is closed
T = TypeVar("T")


class ClientDisconnected(Exception):
    """The client closed the connection before its answer."""


class EventStream(StreamingResponse):
    """Server-sent events; releases the request's resources even if the client disconnects before the first event."""

    def __init__(self, events: AsyncIterator[str], headers: Mapping[str, str], resources: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={**headers, "cache-control": "no-store"})
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            # a client that reads nothing would keep its lease
            await asyncio.wait_for(send(message), CLIENT_STALLED_SECONDS)

        try:
            await super().__call__(scope, receive, send_in_time)
        except TimeoutError:
            raise ClientDisconnected from None
        finally:
            self._resources.close()


async def read_body(http: Request) -> bytes:
    """The body, up to 4 MB. ApiError 413 for a larger one, 408 when nothing arrives for CLIENT_STALLED_SECONDS;
    ClientDisconnected when the client closes the connection."""
    parts, size = [], 0
    stream = http.stream()
    try:
        while (part := await asyncio.wait_for(anext(stream, None), CLIENT_STALLED_SECONDS)) is not None:
            size += len(part)
            if size > MAX_BODY:
                raise ApiError(
                    413, f"the body is larger than {MAX_BODY >> 20} MB; shorten `messages`", "body_too_large"
                )
            parts.append(part)
    except ClientDisconnect:
        raise ClientDisconnected from None
    except TimeoutError:
        message = f"no more of the body arrived for {CLIENT_STALLED_SECONDS:.0f} s; send the request again"
        raise ApiError(408, message, "body_stalled", headers={"connection": "close"}) from None
    return b"".join(parts)


async def while_connected(http: Request, work: Awaitable[T]) -> T:
    """The result of `work`; when the client disconnects first, `work` is canceled and ClientDisconnected raised."""
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(http))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected
    finally:
        task.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
