"""What the endpoint needs of whatever computes its answers: the models of this process, or those of a provider.

    with route.engine.models.lease(route.id):                     # the model is there within the block
        request = await route.chat.request(route, body, messages)
        generation = route.chat.start(route, request, body.stops)
        async for text in generation.deltas(): ...

    engine.Engine, embedded_chat.EmbeddedChat                     weights, and tokens from a thread of this process
    provider_engine.ProviderEngine, provider_chat.ProviderChat    messages that are forwarded

Which of the two serves a version is decided once, in supervisor.py; nothing else asks for the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from finetune_pipeline.serve.generation_request import GenerationRequest, ModelId

if TYPE_CHECKING:
    from finetune_pipeline.serve.generation import Generation
    from finetune_pipeline.serve.model_routes import Route
    from finetune_pipeline.serve.openai_schema import ChatRequest


class ServedModels(Protocol):
    """The models that an engine can answer with. Every member may be used from any thread."""

    @property
    def loaded(self) -> frozenset[ModelId]:
        """Those that may be leased."""

    def lease(self, model: ModelId) -> AbstractContextManager[None]:
        """Keep the model within the block. ModelGone when it is not loaded any more."""

    def unload(self, model: ModelId) -> None:
        """Lease the model no more, and remove it after its last lease is released. Returns at once."""


class ServingEngine(Protocol):
    """Every member may be used from any thread."""

    @property
    def models(self) -> ServedModels: ...

    @property
    def busy(self) -> tuple[int, int]:
        """How many requests run, and how many wait for a slot."""

    @property
    def is_alive(self) -> bool:
        """Whether a thread of the engine has not ended."""

    @property
    def steps(self) -> int:
        """A count that grows while work goes on: shows a waiting client that it does."""

    def abort(self) -> None:
        """Accept no more requests, and end all with an error at once."""

    def stop(self, timeout: float = 2.0) -> None:
        """`abort`, and end every thread; waits up to `timeout` seconds."""


class ChatModel(Protocol):
    """How the models of one version are asked. For the endpoint's event loop."""

    async def request(
        self, route: Route, request: ChatRequest, messages: Sequence[Mapping[str, str]]
    ) -> GenerationRequest:
        """What goes to the engine; `messages` have the system prompt in front. An answer is never longer than the
        route's limit, that of the evaluation. ApiError 400 when the messages cannot be answered."""

    def start(self, route: Route, request: GenerationRequest, stop: tuple[str, ...]) -> Generation:
        """Submit a request that `request` made; `stop` ends its text. EngineFull when too many are running or
        waiting."""
