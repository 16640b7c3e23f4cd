"""Gradient checkpointing: a decoder layer keeps its input alone, and computes the rest again in the backward pass.

    with checkpointed(layers, recomputing):
        out = backbone(…)                # a third more work, a tenth of the memory for activations

Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174. The layers of transformers checkpoint
themselves (`GradientCheckpointingLayer`) when they are in training mode. Only that flag of the layers is set, and only
during the forward call: the modules within a layer stay in evaluation mode, so no dropout of the base model begins.
Losses and gradients are the same as without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.model_family import HINT


def can_checkpoint(layers: Iterable[Any]) -> bool:
    """Whether these decoder layers can be checkpointed: all of transformers' own can."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return all(isinstance(layer, GradientCheckpointingLayer) for layer in layers)


@contextmanager
def checkpointed(layers: Iterable[Any], recomputing: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Within the block, the `layers` are checkpointed where gradients are computed. `recomputing()` is the context in
    which a layer is computed again, later, during the backward pass. ModelError for a layer that cannot be."""
    import torch

    layers = list(layers)
    if not torch.is_grad_enabled():
        yield
        return
    if not can_checkpoint(layers):
        kind = next(type(layer).__name__ for layer in layers if not can_checkpoint([layer]))
        raise ModelError(f"gradient checkpointing is not possible for {kind}", HINT)
    function = functools.partial(
        torch.utils.checkpoint.checkpoint, use_reentrant=False, context_fn=lambda: (nullcontext(), recomputing())
    )
    before = [layer.training for layer in layers]
    for layer in layers:
        layer.training = layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = function
    try:
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training
            del layer.gradient_checkpointing, layer._gradient_checkpointing_func
