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

from finetune_pipeline.errors import ModelError, StorageError
from finetune_pipeline.inference.chat_template import end_ids
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.weight_layout import column_major


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

    try:
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the base model in {base} cannot be loaded: {error}", "run the asset base_model again"
        ) from error
    eos_ids = end_ids(model, tokenizer)
    if adapter is not None:
        model = attach(model, adapter)
    column_major(model.eval())
    return Loaded(model, tokenizer, eos_ids)


def attach(model: Any, adapter: Path, name: str = "tuned") -> Any:
    """peft's wrapper of `model` with the LoRA weights in the folder `adapter`.

    StorageError unless all its weights fit and none is missing, since a partly loaded adapter is another model than the
    trained one.
    """
    from peft import PeftConfig, PeftModel

    if not (adapter / "adapter_model.safetensors").exists():
        raise StorageError(f"{adapter} has no adapter_model.safetensors", "run the asset adapter again")
    config = PeftConfig.from_pretrained(str(adapter))
    config.inference_mode = True
    wrapped = PeftModel(model, config, adapter_name=name)
    try:
        result = wrapped.load_adapter(str(adapter), name, is_trainable=False)
    except (RuntimeError, ValueError) as error:
        raise StorageError(f"the adapter in {adapter} does not fit its base model: {error}", _HINT) from error
    mismatched = [*result.missing_keys, *result.unexpected_keys]
    if mismatched:
        raise StorageError(f"the adapter in {adapter} fits its base model only in part: {mismatched[0]} …", _HINT)
    use_fused_lora(wrapped)
    return wrapped


_HINT = "evaluate it on the base model it was trained on, or train it again"


@contextmanager
def base_only(loaded: Loaded) -> Iterator[None]:
    """Disable the adapter within the block, if there is one."""
    if hasattr(loaded.model, "disable_adapter"):
        with loaded.model.disable_adapter():
            yield
    else:
        yield
