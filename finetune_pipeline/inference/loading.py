"""Load a base model and an adapter for generation, in the same way for evaluation and serving.

    loaded = load(base_folder, adapter_folder)
    with base_only(loaded): ...                 # the adapter is disabled

Everything is computed in fp32, also where bf16 is fast. In bf16 an answer depends on the other sequences of its batch
(near ties between two tokens flip in a few percent of the answers), so that the served model would not be the evaluated
one. Training has its own setting (`train.precision`), because this does not matter there.

LoRA layers are not merged, as in serving, where several adapters share one base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.adapter_files import adapter_config, adapter_errors, load_weights
from finetune_pipeline.inference.chat_template import end_ids
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.weight_layout import column_major
from finetune_pipeline.store import models_folder


@dataclass(frozen=True)
class Loaded:
    """`model`: transformers causal LM or peft's wrapper, in eval mode; `eos_ids`: the end-of-turn tokens."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]


def load(base: Path, adapter: Path | None = None) -> Loaded:
    """Load base model and adapter, in fp32. ModelError when the base cannot be read; StorageError when the adapter does
    not fit it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with base_errors(base):
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    eos_ids = end_ids(model, tokenizer)
    if adapter is not None:
        model = attach(model, adapter)
    column_major(model.eval())
    return Loaded(model, tokenizer, eos_ids)


@contextmanager
def base_errors(base: Path) -> Iterator[None]:
    """A block that loads the base model in the folder `base`: what transformers and safetensors raise for missing,
    damaged or unknown files becomes ModelError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        hint = "put its files back, or choose another base model"
        if base.is_relative_to(models_folder()):
            hint = f"delete the folder {base} and run again: it is converted or downloaded again"
        raise ModelError(f"the base model in {base} cannot be loaded: {error}", hint) from error


def attach(model: Any, adapter: Path, name: str = "tuned") -> Any:
    """peft's wrapper of `model` with the adapter in the folder `adapter`. StorageError when it does not fit."""
    from peft import PeftModel

    config = adapter_config(adapter)
    with adapter_errors(adapter):
        wrapped = PeftModel(model, config, adapter_name=name)
        load_weights(wrapped, name, adapter)
    use_fused_lora(wrapped)
    return wrapped


@contextmanager
def base_only(loaded: Loaded) -> Iterator[None]:
    """Disable the adapter within the block, if there is one."""
    if hasattr(loaded.model, "disable_adapter"):
        with loaded.model.disable_adapter():
            yield
    else:
        yield
