"""Models that read images beside text: only their text part is used, which is a causal language model by itself.

    text_config(AutoConfig.from_pretrained(gemma_3_4b))                  # its Gemma3TextConfig
    text_name("language_model.model.norm.weight", "gemma3")              # "model.norm.weight"
    text_name("vision_tower.post_layernorm.weight", "gemma3")            # None: of the part that reads images

transformers loads the text part from the same files by NAMES; what reads images is never in memory. Such a model is in
the files under one of two names, an older and a newer one.
"""

from __future__ import annotations

import re
from typing import Any

WITH_IMAGES = ("gemma3", "mistral3")  # model types whose files are named as in NAMES
NAMES = {  # pattern of a name in the files -> what stands for it in the text part (`key_mapping` of transformers)
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}


def text_config(config: Any) -> Any:
    """The configuration of the text part of a model of WITH_IMAGES; of any other model `config` itself."""
    if config.model_type not in WITH_IMAGES:
        return config
    text = config.get_text_config()
    text.tie_word_embeddings = config.tie_word_embeddings  # transformers reads both from the outer one
    text.dtype = text.dtype or config.dtype
    return text


def text_name(name: str, model_type: str | None) -> str | None:
    """The name in the text part of a tensor in the files; None for one that is not in it."""
    if model_type not in WITH_IMAGES:
        return name
    own = next((re.sub(old, new, name) for old, new in NAMES.items() if re.match(old, name)), name)
    return own if own.startswith(("model.layers.", "model.norm.", "model.embed_tokens.", "lm_head.")) else None


def keep_own_names(model: Any) -> None:
    """Let a text part be saved by its own names. transformers would restore those of the files that it was read from,
    which `AutoModelForCausalLM` does not find in a model of text alone."""
    model._weight_conversions = None
