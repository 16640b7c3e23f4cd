"""What the attention functions of this project do not compute, and must refuse instead of answering wrongly.

transformers hands these settings of a model to the attention function as arguments; one that ignores them computes
another model without a word.

    refuse(module, {"softcap": 50.0}, longest=300)     # ModelError: Gemma2Attention uses `softcap` ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_pipeline.errors import ModelError


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
