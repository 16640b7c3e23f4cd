"""The models in the engine's memory: bases, each with its adapters and its decoders.

    pool.add(base, loaded)                            # a BaseId, and what inference/loading.py loaded
    pool.load_adapter(ModelId(base, "9be0…"), folder)
    pool.add_request(key, Request("r7", prompt_ids, max_new_tokens=64))
    started, tokens = pool.step(key)                  # one forward pass of that decoder
    pool.remove(base)                                 # its memory is free afterwards

`counts` and `bases` may be read from any thread; everything else only from the engine's.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_pipeline.errors import ServingError
from finetune_pipeline.inference.adapters import Adapters
from finetune_pipeline.inference.cache_budget import MAX_TOKENS
from finetune_pipeline.inference.model_family import max_sequence_tokens
from finetune_pipeline.models import device
from finetune_pipeline.serve.decoder_pool import DecoderPool
from finetune_pipeline.serve.generation_request import BaseId, DecoderKey, ModelId

if TYPE_CHECKING:
    from finetune_pipeline.inference.decoder import Request, Token
    from finetune_pipeline.inference.loading import Loaded


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """One base in memory. `context`: the longest sequence in tokens, prompt and answer."""

    tokenizer: Any
    context: int
    adapters: Adapters
    decoders: DecoderPool


class ModelPool:
    """See the module's docstring. `max_sequences` is the batch size of one decoder."""

    def __init__(self, max_sequences: int) -> None:
        self._max_sequences = max_sequences
        self.bases: dict[BaseId, LoadedBase] = {}  # replaced, not changed: other threads read it

    def add(self, base: BaseId, loaded: Loaded) -> LoadedBase:
        adapters = Adapters(loaded.model)
        context = min(max_sequence_tokens(loaded.model.config), MAX_TOKENS)
        decoders = DecoderPool(loaded.model, loaded.eos_ids, adapters, self._max_sequences)
        added = LoadedBase(loaded.tokenizer, context, adapters, decoders)
        self.bases = {**self.bases, base: added}
        return added

    def remove(self, base: BaseId) -> None:
        """Delete the base and return its memory to the device."""
        self.bases = {key: loaded for key, loaded in self.bases.items() if key != base}
        device.release_memory()

    def load_adapter(self, model: ModelId, folder: Path) -> None:
        """StorageError when the adapter in `folder` does not fit its base."""
        assert model.adapter is not None  # noqa: S101 (for mypy)
        self.bases[model.base].adapters.load(model.adapter, folder)

    def unload_adapter(self, model: ModelId) -> None:
        """Remove the adapter and its decoders, if it is loaded."""
        loaded = self.bases.get(model.base)
        if loaded is not None and model.adapter is not None:
            loaded.decoders.discard_adapter(model.adapter)
            loaded.adapters.unload(model.adapter)

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests run, and how many wait for a slot."""
        counts = [loaded.decoders.counts for loaded in self.bases.values()]
        return sum(running for running, _ in counts), sum(waiting for _, waiting in counts)

    @property
    def keys(self) -> list[DecoderKey]:
        return [key for loaded in self.bases.values() for key in loaded.decoders.keys]

    def add_request(self, key: DecoderKey, request: Request) -> None:
        """Queue the request. DataError when it can never fit; ServingError when its base is not loaded."""
        if key.model.base not in self.bases:
            raise ServingError("the model of this request is not loaded", "send it to another model")
        self.bases[key.model.base].decoders.add_request(key, request)

    def cancel(self, ids: Collection[str]) -> None:
        for loaded in self.bases.values():
            loaded.decoders.cancel(ids)

    def is_idle(self, key: DecoderKey) -> bool:
        return self.bases[key.model.base].decoders.is_idle(key)

    def step(self, key: DecoderKey) -> tuple[list[str], list[Token]]:
        """One forward pass: the ids of the requests whose computation began, and the new tokens."""
        return self.bases[key.model.base].decoders.step(key)

    def discard(self, key: DecoderKey) -> None:
        self.bases[key.model.base].decoders.discard(key)

    def clear(self) -> None:
        for loaded in self.bases.values():
            loaded.decoders.clear()
