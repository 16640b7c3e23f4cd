"""Sizes of models for the tests of the estimates, from transformers' own code and without weights.

smollm()      # SmolLM2-135M
seven()       # Llama 2 7B
seventy()     # the sizes of Llama 2 70B
"""

from __future__ import annotations

import functools

from finetune_pipeline.models.architecture import Architecture


@functools.cache
def smollm() -> Architecture:
    return _llama(hidden=576, inner=1536, layers=30, heads=9, keys=3, vocabulary=49_152, tied=True)


@functools.cache
def seven() -> Architecture:
    return _llama(hidden=4096, inner=11_008, layers=32, heads=32, keys=32, vocabulary=32_000, tied=False)


@functools.cache
def seventy() -> Architecture:
    return _llama(hidden=8192, inner=28_672, layers=80, heads=64, keys=8, vocabulary=32_000, tied=False)


@functools.cache
def tiny() -> Architecture:
    return _llama(hidden=64, inner=128, layers=2, heads=4, keys=4, vocabulary=1000, tied=True)


def _llama(hidden: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int, tied: bool) -> Architecture:
    from transformers import LlamaConfig

    return Architecture.of_config(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            vocab_size=vocabulary,
            tie_word_embeddings=tied,
        )
    )
