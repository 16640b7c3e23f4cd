"""What the attention functions of this project do not compute, and must refuse instead of answering wrongly.

transformers hands these settings of a model to the attention function as arguments; one that ignores them computes
another model without a word.

    refuse(module, {"softcap": 50.0}, longest=300)     # ModelError: Gemma2Attention uses `softcap` ...
    longest_row(model.config)                          # 8192: what is longer is left out, or refused, beforehand
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_pipeline.errors import ModelError


def longest_row(config: Any) -> int:
    """Tokens that a row may have with this model: its context, or its attention window where that is shorter."""
    text = config.get_text_config()
    context = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return context
    return min(context, int(window))


def refuse(module: Any, arguments: Mapping[str, Any], longest: int) -> None:
    """ModelError for soft-capped scores, sinks, and a window shorter than the `longest` row in tokens."""
    kind = type(module).__name__
    for name in ("softcap", "s_aux"):
        if arguments.get(name) is not None:
            raise ModelError(
                f"{kind} uses `{name}`, which is not computed here",
                "choose a base model with plain attention (Llama, Qwen, SmolLM, Phi, ...)",
            )
    window = arguments.get("sliding_window")
    if window is not None and longest > window:
        raise ModelError(
            f"a row of {longest} tokens is longer than the attention window of {window} tokens of {kind}",
            "shorten prompts or answers, or choose a model that attends to everything",
        )
