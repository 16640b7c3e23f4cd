"""Read a LoRA adapter in peft's format, and check that it fits its base model completely.

    config = adapter_config(folder)
    with adapter_errors(folder):
        wrapped = PeftModel(model, config, adapter_name="tuned", autocast_adapter_dtype=False)
        load_weights(wrapped, "tuned", folder)

A partly loaded adapter would generate answers, and be another model than the one that was trained and evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.models.trained_weights import ADAPTER_FILE

CONFIG_FILE = "adapter_config.json"


def adapter_config(folder: Path) -> Any:
    """peft's configuration of the adapter in `folder`, for inference. StorageError when there are no safetensors."""
    from peft import PeftConfig

    if not (folder / ADAPTER_FILE).exists():
        pickled = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        why = f", only {pickled}: pickle, which runs code when it is opened" if pickled else ""
        raise StorageError(f"{folder} holds no {ADAPTER_FILE}{why}", "train the adapter again")
    with reading(folder / CONFIG_FILE, "train the adapter again"):
        json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    with adapter_errors(folder):
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
    return config


def load_weights(wrapped: Any, name: str, folder: Path) -> None:
    """Load the weights in `folder` into the adapter `name` of peft's model, in the dtype of the base model's weights.
    StorageError unless all of them fit, none is missing, and all are finite."""
    import torch

    result = wrapped.load_adapter(str(folder), name, is_trainable=False, autocast_adapter_dtype=False)
    mismatched = [*result.missing_keys, *result.unexpected_keys]
    if mismatched:
        raise StorageError(
            f"the adapter in {folder} fits this base model only in part: {mismatched[0]} …", _hint(folder)
        )
    for key, weight in wrapped.named_parameters():
        if f".{name}." in f"{key}." and not bool(torch.isfinite(weight.sum(dtype=torch.float32))):
            raise StorageError(f"the adapter in {folder} has weights that are not finite, in {key}", "train it again")


def _hint(folder: Path) -> str:
    name = json.loads((folder / CONFIG_FILE).read_text("utf-8")).get("base_model_name_or_path") or "unknown"
    return f"use it with the base model it was trained on ({name}), or train it again"


@contextmanager
def adapter_errors(folder: Path) -> Iterator[None]:
    """A block that reads the adapter in `folder`: what peft and safetensors raise becomes StorageError."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise StorageError(f"the adapter in {folder} is damaged: {error}", "train the adapter again") from error
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2]) + (f" (and {len(lines) - 2} more)" if len(lines) > 2 else "")
        raise StorageError(f"the adapter in {folder} does not fit this base model: {reason}", _hint(folder)) from error
