"""Chats with a model of this process: the chat template makes token ids, and tokens become text again.

    models = load_embedded(engine, version, artifacts)      # base, and the adapter or full weights on the engine
    request = await models.chat.request(route, body, messages)
    generation = models.chat.start(route, request, body.stops)

A serving_engine.ChatModel on an engine.Engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.generate import encode, text_of
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.inference.stopping import StopRule
from finetune_pipeline.serve.deployment_state import Version
from finetune_pipeline.serve.detokenizer import TextStream
from finetune_pipeline.serve.engine import Engine
from finetune_pipeline.serve.generation import Generation, GenerationFailed
from finetune_pipeline.serve.generation_request import BaseId, GenerationRequest, ModelId, TokenEvent
from finetune_pipeline.serve.model_pool import LoadedBase
from finetune_pipeline.serve.model_routes import Route, VersionArtifacts, VersionModels, base_folder
from finetune_pipeline.serve.openai_schema import ApiError, ChatRequest

CHARACTERS_PER_TOKEN = 16  # a prompt with more characters per token of the context is refused before tokenization


@dataclass(frozen=True, slots=True)
class EmbeddedChat:
    """`context`: the longest sequence in tokens, prompt and answer; `prefix_ids`: what all prompts of the version begin
    with."""

    engine: Engine
    tokenizer: Any
    context: int
    prefix_ids: tuple[int, ...]

    async def request(
        self, route: Route, request: ChatRequest, messages: Sequence[Mapping[str, str]]
    ) -> GenerationRequest:
        """The prompt as token ids. ApiError 400 when prompt and answer do not fit into the context, or the chat
        template does not support this order of roles."""
        characters = sum(len(message["content"]) for message in messages)
        if characters > CHARACTERS_PER_TOKEN * self.context:
            raise self._too_long(f"the prompt has {characters} characters")
        try:  # tokenizing a long prompt takes time: in a thread, so that the event loop serves other requests
            ids = await asyncio.to_thread(encode, self.tokenizer, messages)
        except ModelError as error:
            raise ApiError(400, f"`messages`: {error.message}", "invalid_value", "messages") from error
        room = self.context - len(ids)
        limit = min(request.max_answer_tokens or max(room, 1), route.max_new_tokens)
        if limit > room:
            raise self._too_long(f"the prompt has {len(ids)} tokens and the answer may have {limit}")
        rule = StopRule(self.text, route.answer or AnswerFormat())  # the same rule as in the evaluation
        return GenerationRequest(route.id, ids, self.prefix_ids, limit, *request.sampling, stop=rule)

    def start(self, route: Route, request: GenerationRequest, stop: tuple[str, ...]) -> Generation:
        return EmbeddedGeneration(self.engine, request, TextStream(self.text, route.answer or AnswerFormat(), stop))

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's token ids."""
        return text_of(self.tokenizer, ids)

    def _too_long(self, what: str) -> ApiError:
        return ApiError(
            400,
            f"{what}: the model takes {self.context} tokens together; shorten `messages`, or lower `max_tokens`",
            "context_length_exceeded",
            "messages",
        )


class EmbeddedGeneration(Generation):
    """A request in the engine: its tokens come from the engine's thread."""

    def __init__(self, engine: Engine, request: GenerationRequest, stream: TextStream) -> None:
        """Submit the request. EngineFull when too many are running or waiting."""
        super().__init__(stream, len(request.prompt_ids))
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[TokenEvent] = asyncio.Queue()
        self._ticket = engine.submit(request, self._receive)

    @property
    def queued(self) -> float:
        return self._ticket.queued

    def close(self) -> None:
        self._engine.cancel(self._ticket)

    async def deltas(self) -> AsyncIterator[str]:
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

    def _receive(self, event: TokenEvent) -> None:
        """Called on the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)


def load_embedded(engine: Engine, version: Version, artifacts: VersionArtifacts) -> VersionModels:
    """Load what serves `version`: its base model, and on it the adapter or, in a memory of their own, full weights.
    ModelError, StorageError; what was loaded before the error is in `engine.models.loaded`."""
    folder = artifacts.adapter.folder
    base = BaseId(artifacts.weights, artifacts.method == "qlora", version.precision)
    loaded = engine.models.load_base(base, base_folder(artifacts))
    if artifacts.method == "full":
        tuned = ModelId(BaseId(version.adapter, precision=version.precision))
        loaded = engine.models.load_base(tuned.base, folder, trained=True)
    else:
        tuned = ModelId(base, version.adapter)
        engine.models.load(tuned, folder)
    return VersionModels(engine, tuned, ModelId(base), _chat(engine, loaded, artifacts.prompt.system))


def _chat(engine: Engine, loaded: LoadedBase, system: str) -> EmbeddedChat:
    return EmbeddedChat(engine, loaded.tokenizer, loaded.context, prefix_of(loaded.tokenizer, system))


def prefix_of(tokenizer: Any, system: str) -> tuple[int, ...]:
    """The token ids that all prompts with this system prompt begin with. Empty without a system prompt."""
    if not system:
        return ()
    system_message = {"role": "system", "content": system}
    chats = [[system_message, {"role": "user", "content": user}] for user in ("a", "Z")]
    return tuple(common_prefix([encode(tokenizer, chat) for chat in chats]))
