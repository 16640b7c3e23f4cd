"""The fresh LoRA adapter: which weights of a model get one, and whether each tuned layer really got its own.

    wrapped = with_adapter(model, rules)
    # Llama: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; Phi-3: qkv_proj, o_proj, gate_up_proj, ...

The targets are found in the model, not in a list of names: a list of Llama's names misses fused projections in silence,
and peft applies `layers_to_transform` to modules only, so that fused experts (3-dimensional parameters) below the tuned
layers would be adapted as well. Both were seen with peft 0.21; so what peft made is compared with what was meant.
"""

from __future__ import annotations

from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.fused_lora import use_fused_lora

_HINT = "choose a base model whose layers are built of linear layers (Llama, Qwen, Mistral, SmolLM, Phi, ...)"


def with_adapter(model: Any, rules: Train) -> Any:
    """peft's wrapper of `model` with a fresh LoRA adapter (Hu et al., LoRA, 2021) on every linear layer, and on every
    block of experts, of the `rules.layers` upper decoder layers. ModelError when a layer cannot be adapted so."""
    from peft import LoraConfig, get_peft_model

    count = len(model.model.layers)
    lowest = max(0, count - rules.layers) if rules.layers else 0
    linear, experts = _targets(model, lowest)
    config = LoraConfig(
        r=rules.lora.r,
        lora_alpha=rules.lora.alpha,
        lora_dropout=rules.lora.dropout,
        target_modules=sorted({name.rpartition(".")[2] for name in linear}),
        target_parameters=experts or None,
        layers_to_transform=list(range(lowest, count)),
        layers_pattern="layers",
        task_type="CAUSAL_LM",
    )
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:  # no linear layer at all; dropout on experts, which peft cannot do
        raise ModelError(f"{type(model).__name__} cannot be adapted: {error}", _HINT) from error
    _compare(model, linear, lowest)
    use_fused_lora(wrapped)
    wrapped.train()
    return wrapped


def _targets(model: Any, lowest: int) -> tuple[set[str], list[str]]:
    """Names of the linear layers in the decoder layers from `lowest` on, and of the parameters that hold experts."""
    import torch

    linear: set[str] = set()
    experts: list[str] = []
    for index, layer in enumerate(model.model.layers):
        if index >= lowest:
            at = f"model.layers.{index}"
            linear |= {f"{at}.{name}" for name, part in layer.named_modules() if isinstance(part, torch.nn.Linear)}
            experts += [f"layers.{index}.{name}" for name, weight in layer.named_parameters() if _holds_experts(weight)]
    return linear, experts


def _holds_experts(weight: Any) -> bool:
    return bool(weight.ndim == 3 and min(weight.shape) > 1)  # [experts, out, in]; a convolution's has a one


def _compare(model: Any, linear: set[str], lowest: int) -> None:
    """ModelError unless every layer that is tuned is tuned as a whole, and nothing else is."""
    from peft.tuners.lora import LoraLayer

    kind = type(model).__name__
    made = {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    missed = sorted(linear - made.keys())
    if missed:
        raise ModelError(f"{kind}: no adapter was put on {missed[0]}", _HINT)
    covered = {id(_adapted(part)) for part in made.values()}
    for index, layer in enumerate(model.model.layers):
        if index < lowest and any(weight.requires_grad for weight in layer.parameters()):
            raise ModelError(f"{kind}: layer {index} got an adapter, but only {lowest} and up are to be tuned", _HINT)
        for name, part in layer.named_children() if index >= lowest else ():
            largest = _largest_matrix(part)  # small ones, as that which routes tokens to experts, stay as they are
            if largest is not None and id(largest) not in covered:
                raise ModelError(f"{kind}: no adapter was put on the weights of layer {index}'s `{name}`", _HINT)


def _adapted(layer: Any) -> Any:
    """The base model's weight that a layer of peft adapts."""
    return layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight


def _largest_matrix(part: Any) -> Any:
    """The largest weight matrix of the base model in attention, MLP or another part of a layer; None in a norm."""
    matrices = (weight for weight in part.parameters() if weight.ndim > 1 and not weight.requires_grad)
    return max(matrices, key=lambda weight: weight.numel(), default=None)
