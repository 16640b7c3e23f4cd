"""An engine that forwards requests to a managed provider: for a version whose weights are not on this machine.

    engine = ProviderEngine(record.answering(None))
    tuned, base = engine.models.add("9be0…")
    engine.name_of(tuned)           # "ft:gpt-4.1-mini-2025-04-14:acme:parcels:9x1"
    engine.name_of(base)            # "gpt-4.1-mini-2025-04-14": the provider's model before the tuning

The endpoint's own keys, its traffic log, the check of the answer's format and the parity gate stay as they are; the
provider's key is read from the endpoint's environment, and is not a client's to see or to choose. How a request is
forwarded: provider_chat.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from finetune_pipeline.providers.connection import Connection, connect_async, connection_of
from finetune_pipeline.providers.record import ProviderModel
from finetune_pipeline.serve.generation_request import BaseId, EngineFull, ModelId
from finetune_pipeline.serve.model_leases import ModelLeases

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_REQUESTS = 64  # open at the same time; more are refused, as by the embedded engine


class ProviderModels:
    """See serving_engine.ServedModels. The tuned model and the one before the tuning; nothing is loaded here."""

    def __init__(self, base: BaseId) -> None:
        self._base = base
        self._leases = ModelLeases()
        self._lock = threading.Lock()

    def add(self, adapter: str) -> tuple[ModelId, ModelId]:
        """Let both be leased; `adapter` is the content hash of the tuned one. Returns the tuned one and the base."""
        tuned, base = ModelId(self._base, adapter), ModelId(self._base)
        with self._lock:
            self._leases.add(tuned)
            self._leases.add(base)
        return tuned, base

    @property
    def loaded(self) -> frozenset[ModelId]:
        with self._lock:
            return frozenset(self._leases.loaded)

    @property
    def needed(self) -> bool:
        """Whether one is loaded or leased."""
        with self._lock:
            return self._leases.base_needed(self._base)

    def unload(self, model: ModelId) -> None:
        with self._lock:
            self._leases.retire(model)

    @contextmanager
    def lease(self, model: ModelId) -> Iterator[None]:
        with self._lock:
            self._leases.acquire(model)
        try:
            yield
        finally:
            with self._lock:
                self._leases.release(model)


class ProviderEngine:
    """See the module's docstring, and serving_engine.ServingEngine."""

    def __init__(self, model: ProviderModel, max_requests: int = MAX_REQUESTS) -> None:
        """DeclarationError when the provider's key is not in the environment, ModelError when `openai` is missing."""
        self._model = model
        self.where: Connection = connection_of(model.provider, model.base_url)
        self.client: AsyncOpenAI = connect_async(self.where)  # for one event loop, the endpoint's
        # Tasks share a base where the same key pays for it:
        self.models = ProviderModels(BaseId(f"{model.provider.model} at {self.where.url}, {self.where.key_variable}"))
        self._max_requests = max_requests
        self._open = 0
        self._stopping = False
        self._lock = threading.Lock()
        self.steps = 0

    def name_of(self, model: ModelId) -> str:
        """The model's name in requests to the provider."""
        return self._model.provider.model if model.adapter is None else self._model.model

    @property
    def busy(self) -> tuple[int, int]:
        return self._open, 0

    @property
    def is_alive(self) -> bool:
        """False: it has no thread."""
        return False

    def begin(self) -> None:
        """Count one more open request. EngineFull when there are `max_requests`, or the endpoint is stopping."""
        with self._lock:
            if self._stopping or self._open >= self._max_requests:
                raise EngineFull
            self._open += 1

    def end(self) -> None:
        with self._lock:
            self._open -= 1

    def abort(self) -> None:
        """Accept no more requests; those that are open end with the endpoint's event loop."""
        self._stopping = True

    def stop(self, timeout: float = 2.0) -> None:
        self.abort()
