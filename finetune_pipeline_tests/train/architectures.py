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
    "gemma2_window": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        HEAD
        | {"sliding_window": 4, "query_pre_attn_scalar": 1, "attn_logit_softcapping": 2.0}
        | {"final_logit_softcapping": 3.0},
    ),
    "granite_attention": (
        "GraniteForCausalLM",
        "GraniteConfig",
        {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.9, "residual_multiplier": 0.3},
    ),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", {}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral_window": (
        "MixtralForCausalLM",
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "qwen2_window": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "phi3_window": ("Phi3ForCausalLM", "Phi3Config", {"sliding_window": 4}),
    "cohere2": (
        "Cohere2ForCausalLM",
        "Cohere2Config",
        {"logit_scale": 0.25, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        HEAD
        | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}

VISION = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
# Models that read images too, of which the text part alone is loaded; settings of the text and of the vision part
WITH_IMAGES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "gemma3_images": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        HEAD | {"sliding_window": 4, "model_type": "gemma3_text"},
        VISION | {"model_type": "siglip_vision_model"},
    ),
    "mistral3_images": (
        "Mistral3ForConditionalGeneration",
        "Mistral3Config",
        HEAD | {"model_type": "mistral"},
        VISION | {"head_dim": 16, "model_type": "pixtral"},
    ),
}


def tiny(family: str, dtype: str = "float32", **sizes: int) -> Any:
    """A model of this family, with `sizes` instead of SIZES; the same weights every time."""
    import torch
    import transformers

    torch.manual_seed(0)
    if family in WITH_IMAGES:
        model, config, text, vision = WITH_IMAGES[family]
        settings: dict[str, Any] = {"text_config": SIZES | text | sizes, "vision_config": vision}
    else:
        model, config, special = FAMILIES[family]
        settings = SIZES | special | sizes
    built = getattr(transformers, model)(getattr(transformers, config)(**settings))
    return built.to(getattr(torch, dtype))
