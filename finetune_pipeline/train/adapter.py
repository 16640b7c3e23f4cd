"""Put a new LoRA adapter on a model: find the target modules, create it with peft, and check that nothing is missing.

    wrapped = with_adapter(model, rules)
    # Llama: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; Phi-3: qkv_proj, o_proj, gate_up_proj, ...

Targets are found in the model, because a list of Llama's names silently misses fused projections. And the result is
compared with the intention, because peft applies `layers_to_transform` to modules only: fused experts (3-dimensional
parameters) below the tuned layers would be adapted, too. Both were observed with peft 0.21.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.fused_lora import use_fused_lora
from finetune_pipeline.inference.model_family import HINT, DecoderParts, decoder_parts
from finetune_pipeline.models.model_files import writing


def with_adapter(model: Any, rules: Train) -> Any:
    """peft's wrapper of `model` with a new LoRA adapter (Hu et al., LoRA, 2021) on every linear layer, and on every
    block of experts, of the `rules.layers` upper decoder layers (None: all). ModelError when a layer cannot be adapted.
    """
    from peft import LoraConfig, get_peft_model

    parts = decoder_parts(model)
    count = len(parts.layers)
    lowest = max(0, count - rules.layers) if rules.layers else 0
    linear, experts = _targets(parts, lowest)
    if rules.lora.target_modules != "all-linear":
        linear, experts = _selected(linear, rules.lora), []
    config = LoraConfig(
        r=rules.lora.r,
        lora_alpha=rules.lora.alpha,
        lora_dropout=rules.lora.dropout,
        use_rslora=rules.lora.use_rslora,
        use_dora=rules.lora.use_dora,
        init_lora_weights=rules.lora.init_lora_weights,
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
    _check_coverage(model, parts, linear, lowest, complete=rules.lora.target_modules == "all-linear")
    use_fused_lora(wrapped)
    _activate_dropout(wrapped)
    return wrapped


def _activate_dropout(wrapped: Any) -> None:
    """Dropout of the adapter alone: that of the frozen base model would add noise and regularize nothing."""
    wrapped.eval()
    for name, part in wrapped.named_modules():
        if "lora_dropout" in name:
            part.train()


def save_adapter(
    wrapped: Any, out: Path, base_id: str, initial: Mapping[str, Any], whole: Mapping[str, Any] | None = None
) -> None:
    """Save in peft's format. The base is named by its id, because a local path is meaningless on another machine.

    `initial`: weights before training of an initialization that changed the base model (PiSSA, OLoRA); peft subtracts
    them, so that the saved adapter of twice the rank fits the base model as it was. `whole`: the weights to save of a
    sharded model (sharding.py)."""
    for config in wrapped.peft_config.values():
        config.base_model_name_or_path = base_id
        config.target_modules = sorted(config.target_modules)  # a set: its order, and the file's hash, would vary
        config.target_parameters = sorted(config.target_parameters or ()) or None
    options: dict[str, Any] = {"safe_serialization": True, "save_embedding_layers": False}
    with writing(out), TemporaryDirectory() as before:
        if initial:
            with _weights_of(wrapped, initial):
                wrapped.save_pretrained(before, **options)
            options["path_initial_model_for_weight_conversion"] = before
        if whole:
            options["state_dict"] = dict(whole)
        wrapped.save_pretrained(str(out), **options)
    (out / "README.md").unlink(missing_ok=True)  # peft's empty model card; registration writes one


@contextmanager
def _weights_of(wrapped: Any, initial: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, the adapter has its weights before training, and a configuration that leaves the base alone."""
    now = {name: weight for name, weight in wrapped.named_parameters() if name in initial}
    kept = {name: weight.detach().clone() for name, weight in now.items()}
    config = wrapped.peft_config["default"]
    initialization, config.init_lora_weights = config.init_lora_weights, True
    try:
        for name, weight in now.items():
            weight.data.copy_(initial[name])
        yield
    finally:
        config.init_lora_weights = initialization
        for name, weight in now.items():
            weight.data.copy_(kept[name])


def _selected(linear: set[str], lora: Lora) -> set[str]:
    """The declared `target_modules` among the linear layers. ModelError for a name that no layer has."""
    found = {name.rpartition(".")[2] for name in linear}
    missing = sorted(set(lora.target_modules) - found)
    if missing:
        raise ModelError(
            f"`train.lora.target_modules` names {missing[0]}, which the base model does not have",
            f"its linear layers are {', '.join(sorted(found))}; or use all-linear",
        )
    return {name for name in linear if name.rpartition(".")[2] in lora.target_modules}


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


def _check_coverage(model: Any, parts: DecoderParts, linear: set[str], lowest: int, complete: bool) -> None:
    """ModelError unless all of `linear` (if `complete`, all weights of the tuned layers) have an adapter, and no layer
    below `lowest` has one."""
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
        for name, part in layer.named_children() if complete and index >= lowest else ():
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
