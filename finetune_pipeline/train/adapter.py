"""Put a new LoRA adapter on a model: find the target modules, create it with peft, and check that nothing is missing.

    wrapped = with_adapter(model, rules)
    # Llama: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; Phi-3: qkv_proj, o_proj, gate_up_proj, ...

Targets are found in the model, because a list of Llama's names silently misses fused projections. And the result is
compared with the intention, because peft applies `layers_to_transform` to modules only: fused experts (3-dimensional
parameters) below the tuned layers would be adapted, too. Both were observed with peft 0.21.
"""

from __future__ import annotations

from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.model_family import HINT, DecoderParts, decoder_parts


def with_adapter(model: Any, rules: Train) -> Any:
    """peft's wrapper of `model` with a new LoRA adapter (Hu et al., LoRA, 2021) on every linear layer, and on every
    block of experts, of the `rules.layers` upper decoder layers (None: all). ModelError when a layer cannot be adapted.
    """
    from peft import LoraConfig, get_peft_model

    parts = decoder_parts(model)
    count = len(parts.layers)
    lowest = max(0, count - rules.layers) if rules.layers else 0
    linear, experts = _targets(parts, lowest)
    config = LoraConfig(
        r=rules.lora.r,
        lora_alpha=rules.lora.alpha,
        lora_dropout=rules.lora.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in linear}),
        target_parameters=experts or None,
        layers_to_transform=list(range(lowest, count)),
        layers_pattern=parts.layout.layers,
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:  # no linear layer, or dropout on experts, which peft does not support
        raise ModelError(f"{type(model).__name__} cannot be adapted: {error}", HINT) from error
    _check_coverage(model, parts, linear, lowest)
    use_fused_lora(wrapped)
    wrapped.train()
    return wrapped


def _targets(parts: DecoderParts, lowest: int) -> tuple[set[str], list[str]]:
    """Names of the linear layers in the decoder layers from `lowest` on, and of the parameters that hold experts."""
    import torch

    linear: set[str] = set()
    experts: list[str] = []
    for index, layer in enumerate(parts.layers):
        if index >= lowest:
            prefix = parts.layer_name(index)
            linear |= {f"{prefix}.{name}" for name, part in layer.named_modules() if isinstance(part, torch.nn.Linear)}
            experts += [
                f"{parts.layout.layers}.{index}.{name}"
                for name, weight in layer.named_parameters()
                if _holds_experts(weight)
            ]
    return linear, experts


def _holds_experts(weight: Any) -> bool:
    return bool(weight.ndim == 3 and min(weight.shape) > 1)  # [experts, out, in]; a convolution has a dimension of 1


def _check_coverage(model: Any, parts: DecoderParts, linear: set[str], lowest: int) -> None:
    """ModelError unless all weights of the tuned layers have an adapter, and no layer below them has one."""
    from peft.tuners.lora import LoraLayer

    kind = type(model).__name__
    adapted = {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    missing = sorted(linear - adapted.keys())
    if missing:
        raise ModelError(f"{kind}: peft put no adapter on {missing[0]}", HINT)
    covered = {id(_base_weight(part)) for part in adapted.values()}
    for index, layer in enumerate(parts.layers):
        if index < lowest and any(weight.requires_grad for weight in layer.parameters()):
            raise ModelError(f"{kind}: layer {index} has an adapter, but only layers from {lowest} on are tuned", HINT)
        for name, part in layer.named_children() if index >= lowest else ():
            largest = _largest_matrix(part)  # small ones, such as the router of experts, are not adapted
            if largest is not None and id(largest) not in covered:
                raise ModelError(f"{kind}: peft put no adapter on the weights of layer {index}'s `{name}`", HINT)


def _base_weight(layer: Any) -> Any:
    """The base model's weight that a layer of peft adapts."""
    return layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight


def _largest_matrix(part: Any) -> Any:
    """The largest weight matrix of the base model in a part of a layer (attention, MLP); None in a norm."""
    matrices = (weight for weight in part.parameters() if weight.ndim > 1 and not weight.requires_grad)
    return max(matrices, key=lambda weight: weight.numel(), default=None)
