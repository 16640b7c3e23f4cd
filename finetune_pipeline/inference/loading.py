"""Load a base model, and an adapter on it, to generate with: the same way in evaluation and in serving.

    loaded = load(folder_of_the_base, folder_of_the_adapter)
    with base_only(loaded): ...                 # the adapter switched off

Weights are computed in fp32, also where the processor has bf16. In bf16 an answer depends on which other rows happen to
be in its batch (near ties between two tokens flip in some percent of the answers), so that what is served would not be
what was evaluated. Training has a precision of its own (`train.precision`): it has no such promise to keep.

LoRA layers stay unmerged, as in serving, where several adapters share one base.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ModelError, StorageError
from finetune_pipeline.inference.chat_template import end_ids
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.weight_layout import column_major


@dataclass(frozen=True)
class Loaded:
    """`model`: transformers causal LM or peft's wrapper, in eval mode; `eos_ids`: the tokens that end an answer."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]


def load(base: Path, adapter: Path | None = None) -> Loaded:
    """Read base and adapter. ModelError when the base cannot be read; StorageError when the adapter does not fit it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the base model in {base} cannot be loaded: {error}", "materialize base_model again"
        ) from error
    eos_ids = end_ids(model, tokenizer)
    if adapter is not None:
        model = attach(model, adapter)
    column_major(model.eval())
    return Loaded(model, tokenizer, eos_ids)


def attach(model: Any, adapter: Path, name: str = "tuned") -> Any:
    """Put the LoRA weights in `adapter` on `model` and give peft's wrapper of it.

    StorageError unless every weight found its place and none was left over: an adapter that fits in part would answer,
    and be another model than the one that was trained.
    """
    from peft import PeftConfig, PeftModel

    if not (adapter / "adapter_model.safetensors").exists():
        raise StorageError(f"{adapter} holds no adapter_model.safetensors", "materialize the adapter again")
    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    wrapped = PeftModel(model, config, adapter_name=name)
    try:
        result = wrapped.load_adapter(str(adapter), name, is_trainable=False)
    except (RuntimeError, ValueError) as error:
        raise StorageError(f"the adapter in {adapter} does not fit its base model: {error}", _CURE) from error
    astray = [*result.missing_keys, *result.unexpected_keys]
    if astray:
        raise StorageError(f"the adapter in {adapter} fits its base model only in part: {astray[0]} …", _CURE)
    use_fused_lora(wrapped)
    return wrapped


_CURE = "evaluate it on the base model it was trained on, or train it again"


@contextmanager
def base_only(loaded: Loaded) -> Iterator[None]:
    """Switch the adapter off within the block; nothing to do where there is none."""
    if hasattr(loaded.model, "disable_adapter"):
        with loaded.model.disable_adapter():
            yield
    else:
        yield
