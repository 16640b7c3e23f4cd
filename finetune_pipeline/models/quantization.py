"""How a base model is held in 4 bits: the same in training (`qlora`), evaluation and serving.

    config = nf4_config(dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=stored_dtype(), quantization_config=config)
    prepare_quantized(model, dtype)

(inference/base_weights.py does this.) NF4 with double quantization (Dettmers et al., QLoRA, 2023), by bitsandbytes.
Weights are always quantized from bf16, whatever the computation uses afterwards: from fp32, other 4-bit weights would
come out (31 of 4,096 bytes of a random layer), and an adapter that was trained in bf16 would be evaluated in fp32 on
another base than its own.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from finetune_pipeline.errors import ModelError

INSTALL = "pip install 'bitsandbytes>=0.50,<0.51'"

if TYPE_CHECKING:
    import torch


def nf4_config(dtype: torch.dtype) -> Any:
    """transformers' configuration for 4-bit weights that are multiplied in `dtype`. ModelError without bitsandbytes."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("`train.method: qlora` needs the package bitsandbytes", INSTALL)
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def stored_dtype() -> torch.dtype:
    """The dtype to load weights in before they are quantized."""
    import torch

    return torch.bfloat16


def prepare_quantized(model: Any, dtype: torch.dtype) -> None:
    """Convert what is not quantized (embeddings, norms, output layer) to `dtype`, in place, and multiply 4-bit weights
    in the declared dtype on a CPU as well.

    In eval mode without gradients, bitsandbytes 0.50 packs the weights of a CPU with AVX512-BF16 for a kernel that
    computes in bf16 whatever the compute dtype is; packed weights have no gradients either, also after `train()`.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
