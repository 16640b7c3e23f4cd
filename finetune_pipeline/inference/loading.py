"""Load a base model and what was trained on it for generation, in the same way for evaluation and serving.

    loaded = load(base_folder, trained_folder, precision="auto")
    with base_only(loaded) as base:
        …                                       # the base model: adapter disabled, or loaded in place of full weights

What was trained is named by the folder's weights.json (models/trained_weights.py): an adapter on the base model, on the
base model in 4 bits, or full weights, which are loaded instead of the base model.

The precision is that of `serve.precision`. On a CPU everything is computed in fp32, also where bf16 is fast: in bf16 an
answer depends on the other sequences of its batch (near ties between two tokens flip in a few percent of the answers),
so that the served model would not be the evaluated one. On a GPU it is bf16: see docs/decisions.md for what follows.

LoRA layers are not merged, as in serving, where several adapters share one base model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_pipeline.config import Precision
from finetune_pipeline.errors import ModelError, StorageError
from finetune_pipeline.inference.adapter_files import adapter_config, adapter_errors, load_weights
from finetune_pipeline.inference.base_weights import base_errors, read_model
from finetune_pipeline.inference.chat_template import end_ids
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.weight_layout import column_major
from finetune_pipeline.models import device
from finetune_pipeline.models.trained_weights import HINT, method_of

__all__ = ["Loaded", "attach", "base_errors", "base_only", "load", "load_base"]


@dataclass(frozen=True)
class Loaded:
    """`model`: transformers causal LM or peft's wrapper, on the device and in eval mode; `eos_ids`: the end-of-turn
    tokens; `base`: the folder of the base model where `model` is another one (full weights)."""

    model: Any
    tokenizer: Any
    eos_ids: frozenset[int]
    precision: Precision = "auto"
    base: Path | None = None

    @property
    def dtype_name(self) -> str:
        """What the model computes in, "bf16" or "fp32"."""
        return device.dtype_name(device.inference_dtype(self.precision))


def load(base: Path, trained: Path | None = None, precision: Precision = "auto") -> Loaded:
    """The base model in the folder `base`, with what was trained (None: the base model alone).

    ModelError when the base model cannot be used (base_weights.py); StorageError when what was trained is damaged, or
    does not fit the base model.
    """
    if trained is None:
        return load_base(base, precision)
    method = method_of(trained)
    if method == "full":
        return replace(load_full(trained, precision), base=base)
    loaded = load_base(base, precision, quantized=method == "qlora")
    model = attach(loaded.model, trained)
    column_major(model.eval())
    return replace(loaded, model=model)


def load_base(folder: Path, precision: Precision = "auto", quantized: bool = False) -> Loaded:
    """The model in `folder` alone; `quantized`: in 4 bits. ModelError when it cannot be used."""
    model, tokenizer = read_model(folder, device.inference_dtype(precision), quantized)
    eos_ids = end_ids(model, tokenizer)
    column_major(model)
    return Loaded(model, tokenizer, eos_ids, precision)


def load_full(trained: Path, precision: Precision = "auto") -> Loaded:
    """The model of full weights in the artifact's folder. StorageError when it is damaged or incomplete."""
    try:
        return load_base(trained, precision)
    except ModelError as error:  # the folder is an artifact, and no base model that somebody chose
        raise StorageError(f"the trained weights cannot be used: {error.message}", HINT) from error


def attach(model: Any, adapter: Path, name: str = "tuned") -> Any:
    """peft's wrapper of `model` with the adapter in the folder `adapter`. StorageError when it does not fit."""
    from peft import PeftModel

    config = adapter_config(adapter)
    with adapter_errors(adapter):
        wrapped = PeftModel(model, config, adapter_name=name, autocast_adapter_dtype=False)
        load_weights(wrapped, name, adapter)
    use_fused_lora(wrapped)
    return wrapped


@contextmanager
def base_only(loaded: Loaded) -> Iterator[Loaded]:
    """The base model within the block: the same model with its adapter disabled; for full weights the base model, which
    is loaded for the block. On a GPU the full weights wait in the machine's memory meanwhile, so that one model at a
    time takes the GPU's; on a CPU both are in memory."""
    if loaded.base is not None:
        with _parked(loaded.model):
            yield load_base(loaded.base, loaded.precision)
    elif hasattr(loaded.model, "disable_adapter"):
        with loaded.model.disable_adapter():
            yield loaded
    else:
        yield loaded


@contextmanager
def _parked(model: Any) -> Iterator[None]:
    """Within the block, the weights of `model` take no memory of a GPU."""
    if device.kind() == "cpu":
        yield
        return
    model.to("cpu")
    device.release_memory()
    try:
        yield
    finally:
        device.release_memory()
        model.to(device.kind())
