"""How many tokens the KV cache of a decoder may hold, by the memory of the device.

    cache_tokens(model, least=900)     # 32768, or fewer where half of the free memory takes fewer

A token takes 2 x layers x kv heads x head size numbers: 46 kB for SmolLM2-135M in fp32, 524 kB for a 7B model without
grouped heads in bf16. It only decides how many sequences are computed together.
"""

from __future__ import annotations

from typing import Any

from finetune_pipeline.models import device

MAX_TOKENS = 32_768  # of all sequences of a decoder together
SHARE = 0.5  # of the free memory; the rest is for activations and logits


def cache_tokens(model: Any, least: int) -> int:
    """At most MAX_TOKENS, and as many as fit into the share of the free memory; but `least` (one whole sequence) in any
    case, up to MAX_TOKENS."""
    fitting = int(device.free_mb() * 1e6 * SHARE / bytes_per_token(model))
    return min(MAX_TOKENS, max(least, fitting))


def bytes_per_token(model: Any) -> int:
    """Bytes that keys and values of one token take in all layers."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * size * model.get_input_embeddings().weight.element_size())
