"""Whether all weights of a loaded model are finite numbers: a model with NaN gives NaN for every prompt.

    require_finite(model, folder)       # ModelError: … has weights that are not finite, in model.layers.3.mlp.up_proj …

Weights are checked in memory, right after they were loaded, so that files are read once: one sum per tensor in fp32,
which is not finite if any number is not. For 4-bit weights the scale of the scales is looked at, which a single NaN or
infinity in the original weights makes NaN.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ModelError


def first_not_finite(model: Any) -> str | None:
    """The name of the first parameter with NaN or infinity in it; None when all are finite."""
    import torch

    with torch.no_grad():
        return next((name for name, weight in model.named_parameters() if not _is_finite(weight)), None)


def require_finite(model: Any, source: Path) -> None:
    """ModelError when a weight of the model that was loaded from `source` is not finite."""
    if (name := first_not_finite(model)) is not None:
        raise ModelError(
            f"{source} has weights that are not finite, in {name}", "get the model's files again, or choose another one"
        )


def _is_finite(weight: Any) -> bool:
    import torch

    state = getattr(weight, "quant_state", None)
    if state is not None:  # of bitsandbytes
        weight = state.offset if state.nested else state.absmax
    if not weight.is_floating_point():
        return True
    return bool(torch.isfinite(weight.sum(dtype=torch.float32)))
