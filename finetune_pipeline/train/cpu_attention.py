"""Attention over a packed tree on a CPU: a few calls of torch's flash kernel, whatever the number of rows.

    out = attend(query, key, value, packed, scale)      # [1, heads, tokens, size]

Attention to the segments above is split by segment (cascade inference: Ye et al., flashinfer.ai, 2024; Juravsky et al.,
Hydragen, arXiv:2402.05099): all tokens below a shared segment attend to it in one unmasked call, in which the query
heads of a key-value head are further queries; and all tokens attend to their own segment in one causal call per class
of lengths. The parts are joined by their log-sum-exps, which is exact. The backward pass of a part is that of the
kernel with the joined output and log-sum-exp, as in ring attention (Liu et al., arXiv:2310.01889).

One call for every segment instead took twice as long (568 shared tokens, 16 rows of 27: 178 and 85 ms of CPU time a
layer), since short queries leave the kernel's blocks empty.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.train.tree import PackedTree

LENGTH_CLASS = 1.5  # segments are computed together while the longest is at most this much longer than the shortest


@dataclass(frozen=True)
class CascadePlan:
    """`shared`: (start, stop, end) of every segment with segments below it: its tokens, and up to where those below it
    reach. `own`: classes of segments of similar length; for each, the indices [segments, longest] of their tokens, and
    which of them are padding (None: none)."""

    shared: tuple[tuple[int, int, int], ...]
    own: tuple[tuple[Any, Any], ...]


def plan_of(packed: PackedTree) -> CascadePlan:
    """Segments lie in the order of a depth-first walk, so what is below a segment follows it."""
    import torch

    starts, lengths = packed.starts, packed.lengths
    ends = [start + length for start, length in zip(starts, lengths, strict=True)]
    for index in reversed(range(len(starts))):
        for above in packed.paths[index]:
            ends[above] = max(ends[above], ends[index])
    shared = tuple(
        (start, start + length, end)
        for start, length, end in zip(starts, lengths, ends, strict=True)
        if end > start + length
    )
    own = []
    for members in _length_classes(lengths):
        longest = max(lengths[each] for each in members)
        first = torch.tensor([starts[each] for each in members])[:, None]
        size = torch.tensor([lengths[each] for each in members])[:, None]
        offset = torch.arange(longest)[None]
        padding = offset >= size
        indices = torch.where(padding, first + size - 1, first + offset)
        own.append((indices, padding if bool(padding.any()) else None))
    return CascadePlan(shared, tuple(own))


def _length_classes(lengths: tuple[int, ...]) -> list[list[int]]:
    classes: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: lengths[each]):
        if not classes or lengths[index] > LENGTH_CLASS * lengths[classes[-1][0]]:
            classes.append([])
        classes[-1].append(index)
    return classes


def attend(query: Any, key: Any, value: Any, plan: CascadePlan, scale: float, narrow_backward: bool) -> Any:
    """`query` [1, heads, tokens, size], `key` and `value` [1, kv heads, tokens, size] in fp32; [1, heads, tokens, size]
    in fp32. `narrow_backward`: the gradient is computed in bf16, which is faster where the processor has it."""
    return _function().apply(query.contiguous(), key.contiguous(), value.contiguous(), plan, scale, narrow_backward)


@functools.cache
def _function() -> Any:
    import torch

    forward_op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward_op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward_part(query: Any, key: Any, value: Any, causal: bool, scale: float) -> tuple[Any, Any]:
        return forward_op(query, key, value, 0.0, causal, scale=scale)  # type: ignore[no-any-return]

    class Cascade(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, plan: CascadePlan, scale: float, narrow: bool) -> Any:
            heads, kv_heads = query.shape[1], key.shape[1]
            out, sums = torch.empty_like(query), query.new_empty(query.shape[:3])
            for indices, padding in plan.own:
                q, k, v = _own(query, indices), _own(key, indices, heads), _own(value, indices, heads)
                part, part_sums = forward_part(q, k, v, True, scale)
                _scatter(out[0], part, indices, padding)
                _scatter(sums[0], part_sums, indices, padding)
            for start, stop, end in plan.shared:
                folded = _fold(query[:, :, stop:end], kv_heads)
                part, part_sums = forward_part(folded, key[:, :, start:stop], value[:, :, start:stop], False, scale)
                _join(out[:, :, stop:end], sums[:, :, stop:end], part, part_sums)
            ctx.save_for_backward(query, key, value, out, sums)
            ctx.plan, ctx.scale, ctx.narrow = plan, scale, narrow
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            query, key, value, out, sums = ctx.saved_tensors
            heads, kv_heads = query.shape[1], key.shape[1]
            dtype = torch.bfloat16 if ctx.narrow else query.dtype
            narrow = [tensor.to(dtype) for tensor in (grad, query, key, value, out)]
            d_query, d_key, d_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
            for indices, padding in ctx.plan.own:
                g, q, o = (_own(tensor, indices) for tensor in (narrow[0], narrow[1], narrow[4]))
                k, v = _own(narrow[2], indices, heads), _own(narrow[3], indices, heads)
                if padding is not None:
                    g = g.masked_fill(padding[:, None, :, None], 0)
                part_sums = sums[0][:, indices].transpose(0, 1).contiguous()
                parts = backward_op(g, q, k, v, o, part_sums, 0.0, True, scale=ctx.scale)
                for target, part in zip((d_query, d_key, d_value), parts, strict=True):
                    folded = part.reshape(part.shape[0], target.shape[1], -1, *part.shape[2:]).float().sum(2)
                    _scatter(target[0], folded, indices, padding)
            for start, stop, end in ctx.plan.shared:
                g, q, o = (_fold(tensor[:, :, stop:end], kv_heads) for tensor in (narrow[0], narrow[1], narrow[4]))
                k, v = (tensor[:, :, start:stop].contiguous() for tensor in narrow[2:4])
                part_sums = sums[:, :, stop:end].reshape(1, kv_heads, -1)
                parts = backward_op(g, q, k, v, o, part_sums, 0.0, False, scale=ctx.scale)
                d_query[:, :, stop:end] += parts[0].reshape(1, heads, end - stop, -1)
                d_key[:, :, start:stop] += parts[1]
                d_value[:, :, start:stop] += parts[2]
            return d_query, d_key, d_value, None, None, None

    return Cascade


def _own(tensor: Any, indices: Any, heads: int | None = None) -> Any:
    """The tokens of a class of segments, [segments, heads, longest, size]; key-value heads repeated to `heads`."""
    taken = tensor[0][:, indices].transpose(0, 1)
    if heads is not None and heads != taken.shape[1]:
        taken = taken.repeat_interleave(heads // taken.shape[1], 1)
    return taken.contiguous()


def _scatter(target: Any, values: Any, indices: Any, padding: Any) -> None:
    """Write `values` [segments, heads, longest, …] to the tokens of `target` [heads, tokens, …], without padding."""
    values = values.transpose(1, 2)
    if padding is not None:
        values, indices = values[~padding], indices[~padding]
    target.transpose(0, 1)[indices] = values


def _fold(tensor: Any, kv_heads: int) -> Any:
    """[1, heads, tokens, size] as [1, kv heads, group * tokens, size]."""
    return tensor.contiguous().view(1, kv_heads, -1, tensor.shape[-1])


def _join(out: Any, sums: Any, part: Any, part_sums: Any) -> None:
    """Join another part into the output [1, heads, tokens, size] and its log-sum-exps [1, heads, tokens]."""
    import torch

    part, part_sums = part.reshape(out.shape), part_sums.reshape(sums.shape)
    joined = torch.logaddexp(sums, part_sums)
    out.mul_((sums - joined).exp_().unsqueeze(-1)).addcmul_(part, (part_sums - joined).exp_().unsqueeze(-1))
    sums.copy_(joined)
