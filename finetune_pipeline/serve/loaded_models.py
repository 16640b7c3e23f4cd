"""Which models the engine holds, and until when: loads on demand, unloads after the last lease.

    models.load_base(base, folder)          # any thread; the files are read here, the rest is the engine's thread's
    models.load(ModelId(base, "9be0…"), adapter_folder)
    with models.lease(model): …
    models.unload(model)                    # after its last lease; a base after the last model on it

A base is a base model, the same in 4 bits, or an artifact's full weights. Reading one takes seconds to minutes, so that
is done on the calling thread, while requests go on; only then it is added to the pool, between two steps.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from finetune_pipeline.serve.generation_request import BaseId, ModelId
from finetune_pipeline.serve.model_leases import ModelLeases
from finetune_pipeline.serve.model_pool import LoadedBase, ModelPool

if TYPE_CHECKING:
    from finetune_pipeline.inference.loading import Loaded

T = TypeVar("T")
log = logging.getLogger("finetune.engine")


class OnEngineThread(Protocol):
    """Run a function on the engine's thread, between two steps."""

    def __call__(self, function: Callable[[], T], /) -> Future[T]: ...


class LoadedModels:
    """`lock` is the engine's; `on_thread` queues a function for its thread."""

    def __init__(self, pool: ModelPool, lock: threading.Condition, on_thread: OnEngineThread) -> None:
        self._pool, self._lock, self._on_thread = pool, lock, on_thread
        self._leases = ModelLeases()

    @property
    def loaded(self) -> frozenset[ModelId]:
        with self._lock:
            return frozenset(self._leases.loaded)

    def load_base(self, base: BaseId, folder: Path, trained: bool = False) -> LoadedBase:
        """Load the model in `folder` unless it is in memory; `trained`: the folder is an artifact with full weights.
        One thread at a time may load.

        ModelError when it cannot be loaded, StorageError for a damaged artifact, ServingError while the engine stops.
        """
        from finetune_pipeline.inference import loading

        found = self._on_thread(lambda: self._keep(base)).result()
        if found is not None:
            return found
        if trained:
            read = loading.load_full(folder, base.precision)
        else:
            read = loading.load_base(folder, base.precision, base.quantized)
        return self._on_thread(lambda: self._add(base, read)).result()

    def load(self, model: ModelId, folder: Path) -> None:
        """Load the adapter in `folder` on its base, which is loaded. StorageError when it does not fit."""
        self._on_thread(lambda: self._load(model, folder)).result()

    def unload(self, model: ModelId) -> None:
        """Unload the model after its last lease is released. Returns at once; no new lease is possible."""
        with self._lock:
            if self._leases.retire(model):
                self._on_thread(lambda: self._unload(model))

    @contextmanager
    def lease(self, model: ModelId) -> Iterator[None]:
        """Keep the model loaded within the block. ModelGone when it is not loaded any more."""
        with self._lock:
            self._leases.acquire(model)
        try:
            yield
        finally:
            with self._lock:
                if self._leases.release(model):
                    self._on_thread(lambda: self._unload(model))

    # on the engine's thread ---------------------------------------------------------------------------------

    def _keep(self, base: BaseId) -> LoadedBase | None:
        """The base, which stays loaded; None when it is not in memory."""
        found = self._pool.bases.get(base)
        if found is not None:
            with self._lock:
                self._leases.add(ModelId(base))
        return found

    def _add(self, base: BaseId, read: Loaded) -> LoadedBase:
        added = self._pool.add(base, read)
        with self._lock:
            self._leases.add(ModelId(base))
        return added

    def _load(self, model: ModelId, folder: Path) -> None:
        self._pool.load_adapter(model, folder)
        with self._lock:
            self._leases.add(model)

    def _unload(self, model: ModelId) -> None:
        with self._lock:
            if self._leases.needed(model):
                return
            base_needed = self._leases.base_needed(model.base)
        self._pool.unload_adapter(model)
        if not base_needed:
            self._pool.remove(model.base)
            log.info("model %s is unloaded, and its memory is free", model.base.weights[:12])
