"""What training and decoding require of a model family (Llama, Qwen, …): the module to open to add another family.

    parts = decoder_parts(model)                              # its decoder layers, final norm and output head
    require_supported(model.config)                           # ModelError: layers of the kind linear_attention …
    max_sequence_tokens(model.config)                         # 8192
    within_limit(rows, len, model.config, "rows", report)     # those of at most 8192 tokens

Nothing else depends on the family: LoRA targets are found in the modules (train/adapter.py), attention goes through
transformers' `AttentionInterface` (inference/attention.py, train/tree_attention.py), and before its first step a
training compares loss and gradients with the model's own forward pass (train/forward_check.py), so that an architecture
that computes something else is trained on padded rows, not wrongly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from finetune_pipeline.errors import ModelError
from finetune_pipeline.models.text_part import text_config
from finetune_pipeline.records import Reporter

Row = TypeVar("Row")
# the tests cover them
FAMILIES = "Llama, Mistral, Mixtral, Qwen, Gemma 2 and 3, Phi, SmolLM, Granite, OLMo, Cohere, GPT-OSS"
HINT = f"choose a base model of one of these families: {FAMILIES}"
LAYER_TYPES = {"full_attention", "sliding_attention", "dense", "sparse"}  # the last two are kinds of MLPs


@dataclass(frozen=True, slots=True)
class Layout:
    """Attribute names in a transformers causal LM: of the backbone and the output head in the model, of the decoder
    layers and the final norm in the backbone."""

    backbone: str
    layers: str
    norm: str
    head: str

    def matches(self, model: Any) -> bool:
        backbone = getattr(model, self.backbone, None)
        return hasattr(backbone, self.layers) and hasattr(backbone, self.norm) and hasattr(model, self.head)


LAYOUTS: list[Layout] = [
    Layout("model", "layers", "norm", "lm_head"),  # Llama, Qwen 2 and 3, Mistral, SmolLM, Phi 3, mixtures of experts
]


@dataclass(frozen=True, slots=True)
class DecoderParts:
    """The modules of a causal LM that this project reads; `layers` is all decoder layers, the lowest first."""

    layout: Layout
    backbone: Any
    layers: Any
    norm: Any
    head: Any

    def layer_name(self, index: int) -> str:
        """The name of a decoder layer in `model.named_modules()`: "model.layers.3"."""
        return f"{self.layout.backbone}.{self.layout.layers}.{index}"

    @contextmanager
    def only(self, layers: Any, norm: Any) -> Iterator[None]:
        """Within the block, the backbone computes these layers and this final norm; afterwards its own again."""
        setattr(self.backbone, self.layout.layers, layers)
        setattr(self.backbone, self.layout.norm, norm)
        try:
            yield
        finally:
            setattr(self.backbone, self.layout.layers, self.layers)
            setattr(self.backbone, self.layout.norm, self.norm)


def decoder_parts(model: Any) -> DecoderParts:
    """The parts of a transformers causal LM (not of peft's wrapper). ModelError when no layout of LAYOUTS matches."""
    for layout in LAYOUTS:
        if layout.matches(model):
            backbone = getattr(model, layout.backbone)
            layers, norm = getattr(backbone, layout.layers), getattr(backbone, layout.norm)
            return DecoderParts(layout, backbone, layers, norm, getattr(model, layout.head))
    known = "; ".join(f"{x.backbone}.{x.layers}, {x.backbone}.{x.norm}, {x.head}" for x in LAYOUTS)
    raise ModelError(f"{type(model).__name__} has another layout of modules than {known}", HINT)


def require_supported(config: Any) -> None:
    """ModelError for an architecture that is no causal language model of text, or whose layers the attention functions
    of this project do not compute (recurrent layers, attention within chunks, attention to later tokens); read from the
    configuration, before any weights."""
    _require_text(text_config(config).model_type)
    text = config.get_text_config()
    others = sorted(set(getattr(text, "layer_types", None) or ()) - LAYER_TYPES)
    if others:
        raise ModelError(f"{text.model_type} has layers of the kind {others[0]}, which is not supported", HINT)
    if getattr(text, "use_bidirectional_attention", None) or getattr(text, "is_encoder_decoder", False):
        raise ModelError(f"{text.model_type} attends to later tokens: it is no causal language model", HINT)


def _require_text(model_type: str) -> None:
    """ModelError for a model that transformers does not have as a causal language model of text alone."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, "")
    if not name or name.endswith("ForConditionalGeneration"):
        raise ModelError(f"transformers has no causal language model of text alone for the type {model_type!r}", HINT)


def max_sequence_tokens(config: Any) -> int:
    """The longest sequence in tokens: the model's context. Attention windows do not limit it.

    A model with `longrope` (Phi 3 and 4) rotates all positions otherwise once its batch holds a sequence that is longer
    than its original context. An answer would depend on the other sequences, and cached keys on what came later, so
    such a model is used up to its original context.
    """
    text = config.get_text_config()
    context = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    return min([context, *(int(rope["original_max_position_embeddings"]) for rope in _longropes(text))])


def _longropes(text: Any) -> list[Mapping[str, Any]]:
    """The rotary parameters of a configuration that are of the type `longrope`; some have one set per layer type."""
    parameters = getattr(text, "rope_parameters", None) or {}
    candidates = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
    return [each for each in candidates if each.get("rope_type") == "longrope"]


def within_limit(
    rows: Iterable[Row], tokens: Callable[[Row], int], config: Any, what: str, report: Reporter
) -> list[Row]:
    """The rows of at most `max_sequence_tokens`; `tokens` counts those of a row. How many are left out is logged, with
    `what` as their name."""
    rows, limit = list(rows), max_sequence_tokens(config)
    kept = [row for row in rows if tokens(row) <= limit]
    if len(kept) < len(rows):
        skipped = len(rows) - len(kept)
        report.log(f"{skipped} of {len(rows)} {what} are skipped: longer than the model's {limit} tokens")
    return kept


def require_causal(module: Any) -> None:
    """ModelError for an attention layer that attends to later tokens."""
    if not getattr(module, "is_causal", True):
        raise ModelError(f"{type(module).__name__} attends to later tokens", HINT)


def require_forwarded(module: Any, name: str, value: object) -> None:
    """ModelError when `value` is None: the model did not pass its keyword argument `name` on to its attention."""
    if value is None:
        raise ModelError(f"{type(module).__name__} does not pass `{name}` on to its attention function", HINT)
