"""The decoders of one base: one per DecoderKey (adapter, shared prefix, class of size), made with its first request.

    pool.add_request(key, Request("r7", prompt_ids, max_new_tokens=64))
    started, tokens = pool.step(key)            # one forward pass of that decoder
    pool.discard_adapter("9be0…")               # before the adapter is unloaded

`counts` may be called from any thread; everything else only from the thread that owns the model.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from finetune_pipeline.inference.adapters import Adapters
from finetune_pipeline.inference.cache_budget import cache_tokens
from finetune_pipeline.inference.model_family import max_sequence_tokens
from finetune_pipeline.serve.generation_request import SIZES, DecoderKey

if TYPE_CHECKING:
    from finetune_pipeline.inference.decoder import Decoder, Request, Token

STEP_TOKENS = 256  # prompt tokens prefilled in one step: more would delay the requests that are being decoded
CHUNK_TOKENS = 512  # a longer prompt is prefilled in chunks of this size, so that others get their tokens in between


class DecoderPool:
    """See the module's docstring. `max_sequences` is the batch size of one decoder."""

    def __init__(self, model: Any, eos_ids: Iterable[int], adapters: Adapters, max_sequences: int) -> None:
        self._model, self._eos, self._adapters = model, frozenset(eos_ids), adapters
        self._max_sequences = max_sequences
        self._decoders: dict[DecoderKey, Decoder] = {}
        self._lock = threading.Lock()

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests run, and how many wait for a slot."""
        with self._lock:
            decoders = list(self._decoders.values())
        return sum(decoder.running for decoder in decoders), sum(decoder.waiting for decoder in decoders)

    @property
    def keys(self) -> list[DecoderKey]:
        return list(self._decoders)

    def add_request(self, key: DecoderKey, request: Request) -> None:
        """Queue the request. DataError when it can never fit."""
        from finetune_pipeline.inference.decoder import Decoder

        if key not in self._decoders:
            self._adapters.activate(key.model.adapter)
            cached = cache_tokens(self._model, len(key.prefix_ids) + self._longest(key))
            decoder = Decoder(
                self._model, self._eos, key.prefix_ids, self._max_sequences, STEP_TOKENS, cached, CHUNK_TOKENS
            )
            with self._lock:
                self._decoders[key] = decoder
        self._decoders[key].add_request([request])

    def _longest(self, key: DecoderKey) -> int:
        """The most tokens of a sequence of this class of size, without prefix."""
        return SIZES[key.size_class] if key.size_class < len(SIZES) else max_sequence_tokens(self._model.config)

    def cancel(self, ids: Collection[str]) -> None:
        for decoder in self._decoders.values():
            decoder.cancel(ids)

    def is_idle(self, key: DecoderKey) -> bool:
        decoder = self._decoders[key]
        return not (decoder.running or decoder.waiting)

    def step(self, key: DecoderKey) -> tuple[list[str], list[Token]]:
        """One forward pass: the ids of the requests whose computation began, and the new tokens."""
        decoder = self._decoders[key]
        self._adapters.activate(key.model.adapter)
        tokens = decoder.step()
        if key.is_long and self.is_idle(key):
            self.discard(key)  # its cache is large, and long requests are rare
        return decoder.started, tokens

    def discard(self, key: DecoderKey) -> None:
        with self._lock:
            del self._decoders[key]

    def discard_adapter(self, adapter: str) -> None:
        for key in self.keys:
            if key.model.adapter == adapter:
                self.discard(key)

    def clear(self) -> None:
        with self._lock:
            self._decoders.clear()
