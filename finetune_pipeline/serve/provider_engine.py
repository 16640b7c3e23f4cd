"""An engine that forwards requests to a managed provider: for versions whose weights are not on this machine.

    engine = ProviderEngine(record.answering(None))
    engine.load("9be0…", adapter_folder)
    engine.model_of("9be0…")           # "ft:gpt-4.1-mini-2025-04-14:acme:parcels:9x1"
    engine.model_of(None)              # "gpt-4.1-mini-2025-04-14": the provider's model before the tuning

The endpoint's own keys, its traffic log, the check of the answer's format and the parity gate stay as they are; the
provider's key is read from the endpoint's environment, and is not a client's to see or to choose.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_pipeline.errors import StorageError
from finetune_pipeline.providers.connection import Connection, connect_async, connection_of
from finetune_pipeline.providers.record import ProviderModel, read_record
from finetune_pipeline.serve.adapter_leases import AdapterLeases
from finetune_pipeline.serve.generation_request import EngineFull

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MAX_REQUESTS = 64  # open at the same time; more are refused, as by the embedded engine


class ProviderEngine:
    """See the module's docstring, and serving_engine.ServingEngine."""

    def __init__(self, model: ProviderModel, max_requests: int = MAX_REQUESTS) -> None:
        """DeclarationError when the provider's key is not in the environment, ModelError when `openai` is missing."""
        self._provider = model.provider
        self.where: Connection = connection_of(model.provider, model.base_url)
        self._client: AsyncOpenAI = connect_async(self.where)
        self._max_requests = max_requests
        self._models: dict[str, str] = {}
        self._leases = AdapterLeases()
        self._open = 0
        self._stopping = False
        self._lock = threading.Lock()
        self.steps = 0

    @property
    def client(self) -> AsyncOpenAI:
        """For one event loop, the endpoint's."""
        return self._client

    def model_of(self, adapter: str | None) -> str:
        """The name of the model in requests to the provider; None: the model before the tuning."""
        return self._provider.model if adapter is None else self._models[adapter]

    @property
    def busy(self) -> tuple[int, int]:
        return self._open, 0

    @property
    def is_alive(self) -> bool:
        return False

    def load(self, adapter: str, folder: Path) -> None:
        """Read the adapter's provider.json. StorageError when it has none."""
        record = read_record(folder)
        if record is None:
            raise StorageError(f"{folder} is no provider's model", "make the adapter again with `finetune run`")
        with self._lock:
            self._models[adapter] = record.answering(None).model
            self._leases.add(adapter)

    def unload(self, adapter: str) -> None:
        with self._lock:
            self._leases.retire(adapter)

    @contextmanager
    def lease(self, adapter: str | None) -> Iterator[None]:
        if adapter is None:
            yield
            return
        with self._lock:
            self._leases.acquire(adapter)
        try:
            yield
        finally:
            with self._lock:
                self._leases.release(adapter)

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
