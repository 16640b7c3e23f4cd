"""Chats with a provider's model: forwarded, with the same deltas, limits and end of an answer as the embedded engine's.

    models = load_forwarded(engine, version)
    request = await models.chat.request(route, body, messages)
    generation = models.chat.start(route, request, body.stops)

A serving_engine.ChatModel on a provider_engine.ProviderEngine. The answer is streamed from the provider, and cut where
it is complete in the declared format (inference/stopping.py), as in the evaluation. Token counts are the provider's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.providers.connection import translated
from finetune_pipeline.serve.deployment_state import Version
from finetune_pipeline.serve.detokenizer import TextStream
from finetune_pipeline.serve.generation import Generation, GenerationFailed
from finetune_pipeline.serve.generation_request import GenerationRequest
from finetune_pipeline.serve.model_routes import Route, VersionModels
from finetune_pipeline.serve.openai_schema import ChatRequest
from finetune_pipeline.serve.provider_engine import ProviderEngine


@dataclass(frozen=True, slots=True)
class ForwardedRequest(GenerationRequest):
    """A request by its messages: the provider applies the chat template and the tokenizer."""

    messages: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ProviderChat:
    """See serving_engine.ChatModel."""

    engine: ProviderEngine

    async def request(
        self, route: Route, request: ChatRequest, messages: Sequence[Mapping[str, str]]
    ) -> ForwardedRequest:
        """The messages; the provider counts their tokens, and refuses too many."""
        limit = min(request.max_answer_tokens or route.max_new_tokens, route.max_new_tokens)
        return ForwardedRequest(route.id, (), (), limit, *request.sampling, messages=tuple(messages))

    def start(self, route: Route, request: GenerationRequest, stop: tuple[str, ...]) -> Generation:
        assert isinstance(request, ForwardedRequest)  # noqa: S101 - `request` makes no other
        return ForwardedGeneration(self.engine, request, route.answer or AnswerFormat(), stop)


class ForwardedGeneration(Generation):
    """A request at the provider; `close` frees the slot, and the stream ends with the request's own task."""

    queued = 0.0

    def __init__(
        self, engine: ProviderEngine, request: ForwardedRequest, answer: AnswerFormat, stop: tuple[str, ...]
    ) -> None:
        """EngineFull when too many requests are open."""
        self._pieces: list[str] = []
        super().__init__(TextStream(lambda ids: "".join(self._pieces[i] for i in ids), answer, stop), 0)
        self._engine, self._request = engine, request
        self._closed = False
        engine.begin()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._engine.end()

    async def deltas(self) -> AsyncIterator[str]:
        """GenerationFailed with the provider's reason."""
        import openai

        try:
            async with await self._engine.client.chat.completions.create(**self._body()) as chunks:
                async for chunk in chunks:
                    self._engine.steps += 1
                    if text := self._add(chunk):
                        yield text
        except openai.OpenAIError as error:
            raise GenerationFailed(translated(error, "answer", self._engine.where).message) from None
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
            "model": self._engine.name_of(request.model),
            "messages": [dict(message) for message in request.messages],
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def load_forwarded(engine: ProviderEngine, version: Version) -> VersionModels:
    """Let `engine` answer with the tuned model of `version`, and with the one before the tuning."""
    tuned, base = engine.models.add(version.adapter)
    return VersionModels(engine, tuned, base, ProviderChat(engine))
