"""From a prompt to a checked answer: generate, check the declared format, apply the declared policy.

    on_invalid   what happens with an answer that breaks the format
    flag         it is returned, and marked (`finetune.valid: false`, header x-finetune-valid); streams are not delayed
    retry        it is generated once more with temperature 0.7: greedy decoding would return the same answer
    base         the base model answers instead; its answer is checked too, and marked as a fallback
    reject       it is not returned: HTTP 422 with what is wrong

The last three need the whole answer before its first token is sent: a stream of such a task has one content chunk. The
check is that of cleaning and evaluation (clean/answers.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.generate import text_of
from finetune_pipeline.serve.detokenizer import TextStream
from finetune_pipeline.serve.generation_request import GenerationRequest, TokenEvent
from finetune_pipeline.serve.model_routes import Route
from finetune_pipeline.serve.traffic import Status

RETRY_TEMPERATURE = 0.7


class GenerationFailed(Exception):
    """The engine ended the request with an error."""


@dataclass(frozen=True, slots=True)
class Result:
    """A checked answer. `finish` is OpenAI's finish_reason; `valid` is None where no format is declared; `problem` is
    what breaks the format; `completion_tokens` counts every attempt; `first_token` is the time.perf_counter() of the
    first token."""

    text: str
    finish: str
    status: Status
    valid: bool | None
    problem: str | None
    completion_tokens: int
    first_token: float | None


class Generation:
    """One request in the engine, read from the event loop. `close` frees its slot; call it in any case."""

    def __init__(self, route: Route, request: GenerationRequest, stop: tuple[str, ...]) -> None:
        """Submit the request. EngineFull when too many are running or waiting."""
        self._engine = engine = route.embedded
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._stream = TextStream(lambda ids: text_of(engine.tokenizer, ids), route.answer or AnswerFormat(), stop)
        self.completion_tokens = 0
        self.prompt_tokens = len(request.prompt_ids)
        self.first_token: float | None = None
        self.finish = "stop"
        self._ticket = engine.submit(request, self._receive)

    @property
    def text(self) -> str:
        return self._stream.text

    @property
    def queued(self) -> float:
        """Seconds that the request waited for a slot in the engine."""
        return self._ticket.queued

    def close(self) -> None:
        self._engine.cancel(self._ticket)

    async def deltas(self) -> AsyncIterator[str]:
        """The answer's text in deltas, as they become final. GenerationFailed when the engine fails."""
        while True:
            event = await self._queue.get()
            if event.reason == "error":
                raise GenerationFailed(event.error)
            self.completion_tokens += 1
            self.first_token = self.first_token or time.perf_counter()
            if event.reason != "eos" and (text := self._stream.add(event.token)):
                yield text
            if event.reason is not None or self._stream.stopped:
                self.finish = "length" if event.reason == "length" and not self._stream.stopped else "stop"
                break
        self.close()
        if rest := self._stream.end():
            yield rest

    async def full_text(self) -> str:
        async for _ in self.deltas():
            pass
        return self.text

    def _receive(self, event: TokenEvent) -> None:
        """Called on the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)


def start(route: Route, request: GenerationRequest, stop: tuple[str, ...]) -> Generation:
    """Submit the request to the route's engine. EngineFull when too many are running or waiting."""
    from finetune_pipeline.serve.provider_generation import ProviderGeneration, ProviderRequest

    if isinstance(request, ProviderRequest):
        return ProviderGeneration(route, request, stop)
    return Generation(route, request, stop)


def format_problem(route: Route, text: str) -> str | None:
    """What breaks the task's answer format in `text`; None when it is valid or no format is declared."""
    from finetune_pipeline.clean.answers import problem

    return problem(text, route.answer) if route.answer is not None else None


def check(route: Route, generation: Generation) -> Result:
    """The finished answer as it is, checked."""
    problem = format_problem(route, generation.text)
    valid = None if route.answer is None else problem is None
    status: Status = "ok" if problem is None else "invalid"
    tokens, first = generation.completion_tokens, generation.first_token
    return Result(generation.text, generation.finish, status, valid, problem, tokens, first)


async def apply_policy(route: Route, request: GenerationRequest, stop: tuple[str, ...], first: Generation) -> Result:
    """The whole answer of `first`, after the route's `on_invalid` policy. EngineFull and GenerationFailed as in
    `Generation`."""
    await first.full_text()
    result = check(route, first)
    if result.problem is None or route.on_invalid == "flag":
        return result
    if route.on_invalid == "reject":
        return replace(result, status="rejected")
    to_base = route.on_invalid == "base"
    retry = (
        replace(request, adapter=None)
        if to_base
        else replace(request, temperature=RETRY_TEMPERATURE, seed=request.seed + 1)
    )
    second = start(route, retry, stop)
    try:
        await second.full_text()
    finally:
        second.close()
    other = check(route, second)
    status: Status = "fallback" if to_base else other.status
    tokens = result.completion_tokens + other.completion_tokens
    return replace(other, status=status, completion_tokens=tokens, first_token=result.first_token)
