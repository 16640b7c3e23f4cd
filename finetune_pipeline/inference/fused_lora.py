"""LoRA layers with fewer passes over memory; the results equal peft's up to rounding.

    use_fused_lora(model)          # after peft has injected its layers; peft still saves, loads and switches adapters

peft computes `x Wᵀ`, then `x Aᵀ Bᵀ`, scales it, and adds the two: three more passes over a matrix as large as the
layer's output, and as many in the backward pass. Here the scale is applied to the small matrix `x Aᵀ`, and the product
with `Bᵀ` is added in place (`addmm_`). Gradients are written by hand, as in Unsloth (Han and Han, 2023).

Everything else than plain LoRA on a plain linear layer (dropout, DoRA, quantized weights, several active adapters) is
computed by peft.
"""

from __future__ import annotations

import functools
from typing import Any


def use_fused_lora(model: Any) -> None:
    """Replace the forward function of every LoRA layer of `model`, for training and inference. Idempotent."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and "forward" not in vars(module):
            module.forward = functools.partial(_forward, module)


def _forward(module: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """`module`: peft's LoRA layer; `x`: [..., in]; returns [..., out]."""
    import torch

    active = [name for name in module.active_adapters if name in module.lora_A]
    if (
        args
        or kwargs
        or module.disable_adapters
        or module.merged
        or len(active) != 1
        or not _is_plain(module, active[0])
    ):
        return type(module).forward(module, x, *args, **kwargs)
    base, name = module.base_layer, active[0]
    a, b, scale = module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind)
    if torch.is_grad_enabled() or cast or a.dtype != x.dtype:
        dtype = torch.get_autocast_dtype(kind) if cast else x.dtype
        return _autograd_function().apply(x, base.weight, base.bias, a, b, scale, dtype)
    out = torch.nn.functional.linear(x, base.weight, base.bias)
    low = x.reshape(-1, x.shape[-1]) @ a.t()
    out.view(-1, out.shape[-1]).addmm_(low, b.t(), alpha=scale)
    return out


def _is_plain(module: Any, name: str) -> bool:
    """Whether the layer computes exactly x Wᵀ + b + s (x Aᵀ) Bᵀ with this adapter."""
    import torch

    # the flag of the dropout itself: the layers around it stay in evaluation mode in training (train/adapter.py)
    dropout = module.lora_dropout[name].training and not isinstance(module.lora_dropout[name], torch.nn.Identity)
    special = dropout or module.lora_bias[name] or name in module.lora_variant
    return type(module.base_layer) is torch.nn.Linear and not special


@functools.cache
def _autograd_function() -> Any:
    import torch

    class PlainLora(torch.autograd.Function):  # type: ignore[misc]
        """x Wᵀ + b + s (x Aᵀ) Bᵀ. `x` [..., in], W [out, in], A [rank, in], B [out, rank]; W and b are frozen."""

        @staticmethod
        def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scale: float, dtype: Any) -> Any:
            with torch.autocast(x.device.type, enabled=False):
                flat = x.reshape(-1, x.shape[-1]).to(dtype)
                weight, low_a, low_b = weight.to(dtype), a.to(dtype), b.to(dtype)
                low = (flat @ low_a.t()).mul_(scale)
                out = torch.nn.functional.linear(flat, weight, None if bias is None else bias.to(dtype))
                out.addmm_(low, low_b.t())
            ctx.save_for_backward(flat, weight, low_a, low_b, low)
            ctx.shape, ctx.scale, ctx.dtypes = x.shape, scale, (x.dtype, a.dtype, b.dtype)
            return out.view(*x.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            flat, weight, a, b, low = ctx.saved_tensors
            x_dtype, a_dtype, b_dtype = ctx.dtypes
            grad = grad.reshape(-1, grad.shape[-1])
            inner = (grad @ b).mul_(ctx.scale)
            grad_x = (grad @ weight).addmm_(inner, a).view(ctx.shape).to(x_dtype) if ctx.needs_input_grad[0] else None
            return grad_x, None, None, (inner.t() @ flat).to(a_dtype), (grad.t() @ low).to(b_dtype), None, None

    return PlainLora
