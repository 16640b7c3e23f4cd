"""The KV cache of a decoder stays within the memory of the device."""

from __future__ import annotations

import pytest

from finetune_pipeline.inference import cache_budget
from finetune_pipeline.inference.decoder import Decoder
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.request import Request
from finetune_pipeline.models import device


def test_a_token_takes_the_bytes_that_the_cache_takes(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("a", range(10, 60), 4)])
    decoder.step()
    cache = decoder._cache
    taken = sum(tensor.nbytes for pair in cache.own.values() for tensor in pair)
    assert taken == cache_budget.bytes_per_token(loaded.model) * cache.slots * cache.capacity


def test_little_memory_allows_fewer_tokens_but_one_sequence(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_budget.cache_tokens(loaded.model, 100) == cache_budget.MAX_TOKENS
    free = 2000 * cache_budget.bytes_per_token(loaded.model) / cache_budget.SHARE / 1e6
    monkeypatch.setattr(device, "free_mb", lambda: free)
    assert cache_budget.cache_tokens(loaded.model, 100) == 2000
    assert cache_budget.cache_tokens(loaded.model, 9000) == 9000
    assert cache_budget.cache_tokens(loaded.model, 90_000) == cache_budget.MAX_TOKENS
