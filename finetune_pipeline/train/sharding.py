"""A model whose weights are spread over the ranks (FSDP2), for full fine-tuning and for bases larger than one device.

    shard(model, layers, ranks, torch.bfloat16)      # then: collect the weights, make the optimizer
    loss.backward()                                  # gradients are summed while they are computed
    norm = clip(weights.values(), 1.0)
    tensors = gather(weights, ranks)                 # whole, on the host, on rank 0: for checkpoints and saving
    restore(weights["lm_head.weight"], tensor)       # each rank keeps its part

A rank holds 1/size of every weight, gradient and optimizer state, and gathers one layer at a time to compute it
(`torch.distributed.fsdp.fully_shard`; Zhao et al., PyTorch FSDP, 2023; Rajbhandari et al., ZeRO, 2020). Every forward
and backward pass is an exchange: all ranks have to do equally many of them (`Ranks.max`). With one process, every
function here does nothing, or the plain thing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.train.distributed import Ranks
from finetune_pipeline.train.forward import Forward


def shard(model: Any, layers: Sequence[Any], ranks: Ranks, dtype: Any = None) -> None:
    """Replace the weights of `model` by their shards, DTensors, in place. `layers`: the decoder layers, each gathered
    as one; embeddings, last norm and head, which may be tied, are gathered with the whole model. `dtype`: that of the
    computation; gradients are summed in fp32."""
    if ranks.size == 1:
        return
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
        part.set_gradient_divide_factor(1.0)  # the sum, as everywhere: the loss is divided by the tokens of all ranks
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other


def require_shardable(rules: Train) -> None:
    """ModelError for settings whose weights or optimizer cannot be sharded."""
    wrong = {
        "`method: qlora`": rules.method == "qlora",
        "`optimizer: adamw_8bit`": rules.optimizer == "adamw_8bit",
        f"`lora.init_lora_weights: {rules.lora.init_lora_weights}`": rules.method != "full" and rules.lora.changes_base,
    }
    for setting in (setting for setting, found in wrong.items() if found):
        raise ModelError(f"`train`: {setting} cannot be used with sharded weights", "set `shard: never` in the backend")


def spread(forward: Forward, layers: Sequence[Any], ranks: Ranks) -> None:
    """Shard the model of a forward pass, with `layers`, its decoder layers. From here on every rank computes as many
    passes as the others (`Ranks.even`)."""
    shard(forward.model, layers, ranks)
    name = forward.model.base_model_prefix
    forward.run_backbone = as_forward(
        forward.model, "run_backbone", lambda model, **inputs: getattr(model, name)(**inputs)
    )
    forward.forget_frozen()
    ranks.sharded = True


def refresh(model: Any) -> None:
    """Forget the whole weights that a forward pass without gradient has left: the shards have changed since."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(model, FSDPModule):
        model.reshard()


def as_forward(model: Any, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(model, …)` as the method `name` of a sharded model, which gathers its weights as `model.forward` does.
    For a forward pass that is not `model(…)`: of the backbone alone, or of the head on chosen tokens."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    setattr(model, name, function.__get__(model))
    if isinstance(model, FSDPModule):
        register_fsdp_forward_method(model, name)
    method: Callable[..., Any] = getattr(model, name)
    return method


def clip(weights: Iterable[Any], max_norm: float) -> float:
    """Scale the gradients so that their norm over all ranks is at most `max_norm`; the norm before."""
    import torch

    return float(_whole(torch.nn.utils.clip_grad_norm_(list(weights), max_norm)))


def gather(tensors: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """The tensors whole, on the host, on rank 0; nothing on the others, which take part in the exchange. One tensor at
    a time is whole on a device. Weights, and an optimizer's state of them."""
    gathered: dict[str, Any] = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor.detach())
        if ranks.is_main:
            gathered[name] = whole.cpu()
    return gathered


def restore(target: Any, whole: Any) -> None:
    """Set a weight, or a tensor of an optimizer's state, from the whole tensor; every rank passes the same one, as read
    from a checkpoint that all of them see, and keeps its part."""
    import torch

    with torch.no_grad():
        target.copy_(part_of(whole, target))


def part_of(whole: Any, like: Any) -> Any:
    """A whole tensor on the device of `like`, and sharded as it is, if it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(like.device)
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def _whole(tensor: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_copy(module: Any) -> Any:
    """A frozen copy of a module, its weights whole on every rank."""
    import torch

    copied = copy.deepcopy(module)
    for name, weight in list(copied.named_parameters(recurse=False)):
        setattr(copied, name, torch.nn.Parameter(_whole(weight.detach()).clone(), requires_grad=False))
    return copied.requires_grad_(False)
