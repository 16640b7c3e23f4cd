"""Tiny random models of several families, initialized by their own classes: add a family to FAMILIES to test it."""

from __future__ import annotations

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
HEAD = {"head_dim": 8}
# name: model class, configuration class, settings in addition to SIZES
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "smollm": ("LlamaForCausalLM", "LlamaConfig", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", HEAD),
    "mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": None}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", HEAD | EXPERTS),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", HEAD | {"sliding_window": 64}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", HEAD | {"sliding_window": 4}),
    "granite": ("GraniteForCausalLM", "GraniteConfig", {"logits_scaling": 4.0, "embedding_multiplier": 3.0}),
    "mistral_window": ("MistralForCausalLM", "MistralConfig", {"sliding_window": 4}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", "Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 16}),
    "cohere": ("CohereForCausalLM", "CohereConfig", {"logit_scale": 0.25}),
}


def tiny(family: str, dtype: str = "float32", **sizes: int) -> Any:
    """A model of this family, with `sizes` instead of SIZES; the same weights every time."""
    import torch
    import transformers

    model, config, special = FAMILIES[family]
    torch.manual_seed(0)
    built = getattr(transformers, model)(getattr(transformers, config)(**SIZES | special | sizes))
    return built.to(getattr(torch, dtype))
