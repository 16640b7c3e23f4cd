"""AdamW for the trainable weights, from torch (fused) or from bitsandbytes (moments in 8 bits).

optimizer_for(trainable.weights, Train(learning_rate=2e-4, optimizer="adamw_8bit"))
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.models.quantization import INSTALL
from finetune_pipeline.train.schedule import peak_learning_rate

BETAS = (0.9, 0.999)


def optimizer_for(weights: Mapping[str, Any], rules: Train) -> Any:
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101). Vectors (norms, biases) get no weight decay. ModelError where
    the package of an 8-bit optimizer is missing."""
    import torch

    rate = peak_learning_rate(rules)
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": rules.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if rules.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=BETAS, fused=True)
    if find_spec("bitsandbytes") is None:
        raise ModelError("`train.optimizer: adamw_8bit` needs the package bitsandbytes", INSTALL)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(groups, lr=rate, betas=BETAS)
