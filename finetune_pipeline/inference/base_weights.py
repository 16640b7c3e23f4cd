"""Load the weights of one model folder: the declared base model, the same in 4 bits, or a trained one.

    model, tokenizer = read_model(folder, torch.float32, quantized=True)
    with base_errors(folder):                           # what loading raises becomes ModelError, with a hint
        …

Everything that can be known from the small files is checked before the weights are read: pickled weights, a type or
kinds of layers that are not supported, a missing chat template. Afterwards no weight may be missing (transformers would
fill it with random numbers and warn) or not finite. Python code of the folder is never executed; of a model that reads
images, the text part alone is loaded (models/text_part.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.chat_template import require_template
from finetune_pipeline.inference.model_family import HINT, require_supported
from finetune_pipeline.models import device
from finetune_pipeline.models.finite_weights import require_finite
from finetune_pipeline.models.model_files import check_safe, tensor_shapes
from finetune_pipeline.models.quantization import nf4_config, prepare_quantized, stored_dtype
from finetune_pipeline.models.text_part import NAMES, keep_own_names, text_config
from finetune_pipeline.store import models_folder

if TYPE_CHECKING:
    import torch

MEMORY_HINT = "choose a smaller base model or a larger device, or train with qlora, which holds it in 4 bits"


def read_model(folder: Path, dtype: torch.dtype, quantized: bool, on: str | None = None) -> tuple[Any, Any]:
    """The model, in eval mode, and its tokenizer. `quantized`: linear layers in 4 bits, as in training; `on`: where the
    weights are read to, "cuda" or "cpu" (default: the device of models/device.py).

    ModelError when it cannot be read, is unsafe, unsupported, incomplete, not finite, or larger than the memory.
    """
    from transformers import AutoModelForCausalLM

    with base_errors(folder):
        whole, tokenizer = _read_small_files(folder)
        config = text_config(whole)
        settings: dict[str, Any] = {"quantization_config": nf4_config(dtype)} if quantized else {}
        if (target := on or device.kind()) == "cuda":  # read straight into its memory
            settings["device_map"] = {"": target}
        if config is not whole:
            settings["key_mapping"] = NAMES
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=stored_dtype() if quantized else dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
        _require_complete(folder, found, exactly=hasattr(config, "auto_map"))
    if config is not whole:
        keep_own_names(model)
    if quantized:
        prepare_quantized(model, dtype)
    require_finite(model, folder)
    return model.eval(), tokenizer


def read_small_files(folder: Path) -> tuple[Any, Any]:
    """The configuration of the model that is loaded (models/text_part.py) and its tokenizer, checked as far as they can
    be without the weights. ModelError, or what transformers raises (`base_errors`)."""
    config, tokenizer = _read_small_files(folder)
    return text_config(config), tokenizer


def _read_small_files(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoTokenizer

    check_safe(folder)
    require_known(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    require_supported(config)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    require_template(tokenizer, str(folder))
    return config, tokenizer


def require_known(folder: Path) -> None:
    """ModelError for an architecture that the installed transformers does not have."""
    import transformers
    from transformers import CONFIG_MAPPING

    with base_errors(folder):
        model_type = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    if model_type not in CONFIG_MAPPING:
        version = transformers.__version__
        raise ModelError(f"{folder} is of the type {model_type!r}, which transformers {version} does not have", HINT)


def _require_complete(folder: Path, found: dict[str, Any], exactly: bool) -> None:
    """ModelError for a weight of the model that the files do not have, or `exactly`, for one that the model does not
    have: a folder with code may hold a model that computes something else than transformers' class."""
    missing = sorted(str(each) for name in ("missing_keys", "mismatched_keys") for each in found.get(name) or ())
    if missing:
        raise ModelError(
            f"the weights in {folder} lack {len(missing)} tensors of the model, or have others, such as {missing[0]}",
            "get the model's files again",
        )
    if exactly and (unknown := sorted(found.get("unexpected_keys") or ())):
        raise ModelError(
            f"the weights in {folder} have {len(unknown)} tensors that transformers' model of this type does not have, "
            f"such as {unknown[0]}: it needs code of its own, which is never executed",
            HINT,
        )


@contextmanager
def base_errors(base: Path) -> Iterator[None]:
    """A block that loads the base model in the folder `base`: what transformers and safetensors raise for missing,
    damaged or unknown files becomes ModelError, and so does memory that is too small."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        hint = "put its files back, or choose another base model"
        if base.is_relative_to(models_folder()):
            hint = f"delete the folder {base} and run again: it is converted or downloaded again"
        raise ModelError(f"the base model in {base} cannot be loaded: {_reason(base, error)}", hint) from error
    except (RuntimeError, MemoryError) as error:
        if device.out_of_memory(error):
            raise device.memory_error(f"the model in {base}", MEMORY_HINT) from error
        raise


def _reason(base: Path, error: Exception) -> str:
    """The damaged file if a header of the weights cannot be read, else the first line of the error: transformers adds
    advice of its own."""
    try:
        tensor_shapes(base)
    except (ModelError, OSError) as damaged:
        return damaged.message if isinstance(damaged, ModelError) else str(damaged)
    return next(iter(str(error).splitlines()), "") or type(error).__name__
