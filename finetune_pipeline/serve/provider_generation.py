"""One request that is forwarded to a provider: the same deltas, limits and end of an answer as the embedded engine's.

    generation = ProviderGeneration(route, provider_request(route, request, messages), request.stops)
    async for text in generation.deltas(): ...

The answer is streamed from the provider, and cut where it is complete in the declared format (inference/stopping.py),
as in the evaluation. Token counts are the provider's own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.providers.connection import translated
from finetune_pipeline.serve.detokenizer import TextStream
from finetune_pipeline.serve.generation import Generation, GenerationFailed
from finetune_pipeline.serve.generation_request import GenerationRequest
from finetune_pipeline.serve.model_routes import Route
from finetune_pipeline.serve.openai_schema import ChatRequest
from finetune_pipeline.serve.provider_engine import ProviderEngine


@dataclass(frozen=True, slots=True)
class ProviderRequest(GenerationRequest):
    """A request by its messages: the provider applies the chat template and the tokenizer."""

    messages: tuple[Mapping[str, str], ...] = ()


def provider_request(route: Route, request: ChatRequest, messages: Sequence[Mapping[str, str]]) -> ProviderRequest:
    """The request with the route's limits; `messages` with the system prompt already in front."""
    limit = min(request.max_answer_tokens or route.max_new_tokens, route.max_new_tokens)
    top_p = 1.0 if request.top_p is None else request.top_p
    return ProviderRequest(
        route.adapter, (), (), limit, request.temperature or 0.0, top_p, request.seed or 0, messages=tuple(messages)
    )


class ProviderGeneration(Generation):
    """See Generation; `close` frees the slot, and ends the provider's stream with the request's own task."""

    def __init__(self, route: Route, request: ProviderRequest, stop: tuple[str, ...]) -> None:
        """EngineFull when too many requests are open."""
        assert isinstance(route.engine, ProviderEngine)  # noqa: S101 - chosen by this type in generation.start
        self._provider, self._request = route.engine, request
        self._pieces: list[str] = []
        spec = route.answer or AnswerFormat()
        self._stream = TextStream(lambda ids: "".join(self._pieces[i] for i in ids), spec, stop)
        self.completion_tokens = 0
        self.prompt_tokens = 0
        self.first_token: float | None = None
        self.finish = "stop"
        self._closed = False
        self._provider.begin()

    @property
    def queued(self) -> float:
        return 0.0

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._provider.end()

    async def deltas(self) -> AsyncIterator[str]:
        """The answer's text in deltas. GenerationFailed with the provider's reason."""
        import openai

        try:
            async with await self._provider.client.chat.completions.create(**self._body()) as chunks:
                async for chunk in chunks:
                    self._provider.steps += 1
                    if text := self._add(chunk):
                        yield text
        except openai.OpenAIError as error:
            raise GenerationFailed(translated(error, "answer", self._provider.where).message) from None
        self.close()
        if rest := self._stream.end():
            yield rest

    def _add(self, chunk: Any) -> str:
        """The text that became final with this chunk."""
        if chunk.usage is not None:
            self.prompt_tokens, self.completion_tokens = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        if not chunk.choices:
            return ""
        choice = chunk.choices[0]
        if choice.finish_reason == "length" and not self._stream.stopped:
            self.finish = "length"
        piece = choice.delta.content
        if not piece:
            return ""
        self.first_token = self.first_token or time.perf_counter()
        self._pieces.append(piece)
        return self._stream.add(len(self._pieces) - 1)

    def _body(self) -> dict[str, Any]:
        request = self._request
        return {
            "model": self._provider.model_of(request.adapter),
            "messages": [dict(message) for message in request.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
