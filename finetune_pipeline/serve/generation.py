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

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from finetune_pipeline.serve.detokenizer import TextStream
from finetune_pipeline.serve.generation_request import GenerationRequest
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


class Generation(ABC):
    """One request that is being answered, read from the event loop. `close` frees its slot; call it in any case."""

    def __init__(self, stream: TextStream, prompt_tokens: int) -> None:
        self._stream = stream
        self.prompt_tokens, self.completion_tokens = prompt_tokens, 0
        self.first_token: float | None = None
        self.finish = "stop"

    @property
    def text(self) -> str:
        return self._stream.text

    @property
    @abstractmethod
    def queued(self) -> float:
        """Seconds that the request waited for a slot in the engine."""

    @abstractmethod
    def close(self) -> None:
        """End the request, and free its slot; no effect when it has ended."""

    @abstractmethod
    def deltas(self) -> AsyncIterator[str]:
        """The answer's text in deltas, as they become final. GenerationFailed when the engine fails."""

    async def full_text(self) -> str:
        async for _ in self.deltas():
            pass
        return self.text


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
        replace(request, model=route.base)
        if to_base
        else replace(request, temperature=RETRY_TEMPERATURE, seed=request.seed + 1)
    )
    second = route.chat.start(route, retry, stop)
    try:
        await second.full_text()
    finally:
        second.close()
    other = check(route, second)
    status: Status = "fallback" if to_base else other.status
    tokens = result.completion_tokens + other.completion_tokens
    return replace(other, status=status, completion_tokens=tokens, first_token=result.first_token)
