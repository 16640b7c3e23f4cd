"""From a prompt to an answer that was checked: generate, compare with the declared format, do what the task declares.

    on_invalid   an answer that breaks the format
    pass         goes out, marked (`finetune.valid: false`, header x-finetune-valid); streams go out as they come
    retry        is asked for once more, sampled at temperature 0.7: the same greedy answer would come again
    base         is replaced by the base model's answer, which is marked as a fallback and checked as well
    reject       does not go out: HTTP 422 with the complaint

The three last have to see the whole answer before its first word goes out: a stream of such a task is one piece.

What it is not: the format itself (clean/answers.py, the same check as in cleaning and evaluation), or HTTP (app.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.generate import text_of
from finetune_pipeline.serve.detokenizer import TextStream
from finetune_pipeline.serve.engine import GenerationRequest, TokenEvent
from finetune_pipeline.serve.model_routes import Route
from finetune_pipeline.serve.traffic import Status

RETRY_TEMPERATURE = 0.7


class GenerationFailed(Exception):
    """The engine gave an error instead of an answer."""


@dataclass(frozen=True, slots=True)
class Result:
    """An answer, checked. `valid` is None where there is no format to check; `completion_tokens` counts every attempt;
    `first_token` is the time.perf_counter() of the first one."""

    text: str
    finish: str
    status: Status
    valid: bool | None
    problem: str | None
    completion_tokens: int
    first_token: float | None


class Generation:
    """One run of the engine, read from the event loop. `close` gives its place back; call it whatever happens."""

    def __init__(self, route: Route, ask: GenerationRequest, stop: tuple[str, ...]) -> None:
        """Queue the prompt. EngineFull when too many wait."""
        self._engine = engine = route.engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._stream = TextStream(lambda ids: text_of(engine.tokenizer, ids), route.answer or AnswerFormat(), stop)
        self.completion_tokens = 0
        self.first_token: float | None = None
        self.finish = "stop"
        self._ticket = engine.submit(ask, self._take)

    @property
    def text(self) -> str:
        return self._stream.text

    @property
    def queued(self) -> float:
        """Seconds that the prompt waited for a place in the engine."""
        return self._ticket.queued

    def close(self) -> None:
        self._engine.cancel(self._ticket)

    async def texts(self) -> AsyncIterator[str]:
        """The pieces of the answer's text, as they become certain. GenerationFailed when the engine fails."""
        while True:
            piece = await self._queue.get()
            if piece.reason == "error":
                raise GenerationFailed(piece.error)
            self.completion_tokens += 1
            self.first_token = self.first_token or time.perf_counter()
            if piece.reason != "eos" and (text := self._stream.add(piece.token)):
                yield text
            if piece.reason is not None or self._stream.stopped:
                self.finish = "length" if piece.reason == "length" and not self._stream.stopped else "stop"
                break
        self.close()
        if rest := self._stream.end():
            yield rest

    async def whole(self) -> str:
        async for _ in self.texts():
            pass
        return self.text

    def _take(self, piece: TokenEvent) -> None:
        """On the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)


def complaint(route: Route, text: str) -> str | None:
    """What the answer breaks in the task's format, if anything."""
    from finetune_pipeline.clean.answers import problem

    return problem(text, route.answer) if route.answer is not None else None


def checked(route: Route, generation: Generation) -> Result:
    """The answer as it is, with what the format says of it."""
    problem = complaint(route, generation.text)
    valid = None if route.answer is None else problem is None
    status: Status = "ok" if problem is None else "invalid"
    tokens, first = generation.completion_tokens, generation.first_token
    return Result(generation.text, generation.finish, status, valid, problem, tokens, first)


async def settle(route: Route, ask: GenerationRequest, stop: tuple[str, ...], first: Generation) -> Result:
    """The whole answer after the declared policy. EngineFull, GenerationFailed as in `Generation`."""
    await first.whole()
    result = checked(route, first)
    if result.problem is None or route.on_invalid == "flag":
        return result
    if route.on_invalid == "reject":
        return replace(result, status="rejected")
    base = route.on_invalid == "base"
    again = replace(ask, adapter=None) if base else replace(ask, temperature=RETRY_TEMPERATURE, seed=ask.seed + 1)
    second = Generation(route, again, stop)
    try:
        await second.whole()
    finally:
        second.close()
    other = checked(route, second)
    tokens = result.completion_tokens + other.completion_tokens
    status: Status = "fallback" if base else other.status
    return replace(other, status=status, completion_tokens=tokens, first_token=result.first_token)
