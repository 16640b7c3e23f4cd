"""Attention over a packed tree on a CPU: a few calls, whatever the number of rows.

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
import itertools
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.train.attention_parts import FlashPart, Kept, MatmulPart, Part
from finetune_pipeline.train.tree import PackedTree

# Segments are computed together while the longest is at most this much longer than the shortest, or is short itself.
LENGTH_CLASS, SHORT = 1.5, 64


@dataclass(frozen=True)
class CascadePlan:
    """`shared`: (start, stop, end) of every segment with segments below it: its tokens, and up to where those below it
    reach. `own`: classes of segments of similar length; for each, the indices [segments, longest] of their tokens (of
    one segment: its slice), and which of them are padding (None: none)."""

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
        if len(members) == 1:
            own.append((slice(starts[members[0]], starts[members[0]] + lengths[members[0]]), None))
            continue
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
        if not classes or lengths[index] > max(SHORT, LENGTH_CLASS * lengths[classes[-1][0]]):
            classes.append([])
        classes[-1].append(index)
    return classes


def attend(query: Any, key: Any, value: Any, plan: CascadePlan, scale: float, narrow: bool) -> Any:
    """`query` [1, heads, tokens, size], `key` and `value` [1, kv heads, tokens, size]; [1, heads, tokens, size] in the
    dtype of `value`. `narrow`: computed in bf16, which is faster where the processor has instructions for it, else in
    fp32."""
    import torch

    part = MatmulPart() if narrow else FlashPart()
    with torch.autocast("cpu", enabled=False):
        key = key.float() * scale
        if narrow:  # the same for every key, so that no weight changes; small scores are rounded less (SageAttention)
            key = key - key.detach().mean(2, keepdim=True)
        query, key, wide = (each.to(part.dtype).contiguous() for each in (query, key, value))
        return _function().apply(query, key, wide, plan, part).to(value.dtype)


@functools.cache
def _function() -> Any:
    import torch

    class Cascade(torch.autograd.Function):  # type: ignore[misc]
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, plan: CascadePlan, part: Part) -> Any:
            out, sums, kept = _forward(query, key, value, plan, part)
            out = out.to(part.dtype)
            ctx.save_for_backward(query, key, value, out, sums, *(tensor for each in kept for tensor in each))
            ctx.plan, ctx.part, ctx.sizes = plan, part, [len(each) for each in kept]
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            query, key, value, out, sums, *saved = ctx.saved_tensors
            rest = iter(saved)
            kept = [tuple(itertools.islice(rest, size)) for size in ctx.sizes]
            grads = _backward(grad, query, key, value, out, sums, kept, ctx.plan, ctx.part)
            return *grads, None, None

    return Cascade


def _forward(query: Any, key: Any, value: Any, plan: CascadePlan, part: Part) -> tuple[Any, Any, list[Kept]]:
    """Output and log-sum-exps in fp32; of each part, what its backward pass needs."""
    import torch

    heads, kv_heads = query.shape[1], key.shape[1]
    out, sums, kept = torch.empty(query.shape), torch.empty(query.shape[:3]), []
    for indices, padding in plan.own:
        q, k, v = _own(query, indices), _own(key, indices, heads), _own(value, indices, heads)
        part_out, part_sums, part_kept = part.forward(q, k, v, True)
        kept.append(part_kept)
        _scatter(out[0], part_out.float(), indices, padding)
        _scatter(sums[0], part_sums, indices, padding)
    for start, stop, end in plan.shared:
        q = _fold(query[:, :, stop:end], kv_heads)
        part_out, part_sums, part_kept = part.forward(q, key[:, :, start:stop], value[:, :, start:stop], False)
        kept.append(part_kept)
        _join(out[:, :, stop:end], sums[:, :, stop:end], part_out, part_sums)
    return out, sums, kept


def _backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, kept: list[Kept], plan: CascadePlan, part: Part
) -> tuple[Any, Any, Any]:
    import torch

    heads, kv_heads = query.shape[1], key.shape[1]
    grad = grad.to(part.dtype)
    d_query, d_key, d_value = (torch.empty(each.shape) for each in (query, key, value))
    for (indices, padding), part_kept in zip(plan.own, kept, strict=False):
        g, q, o = (_own(tensor, indices) for tensor in (grad, query, out))
        k, v = _own(key, indices, heads), _own(value, indices, heads)
        if padding is not None:
            g = g.masked_fill(padding[:, None, :, None], 0)
        own_sums = _own(sums, indices)
        grads = part.backward(g, q, k, v, o, own_sums, part_kept, True)
        for target, each in zip((d_query, d_key, d_value), grads, strict=True):
            summed = each.reshape(each.shape[0], target.shape[1], -1, *each.shape[2:]).float().sum(2)
            _scatter(target[0], summed, indices, padding)
    for (start, stop, end), part_kept in zip(plan.shared, kept[len(plan.own) :], strict=True):
        g, q, o = (_fold(tensor[:, :, stop:end], kv_heads) for tensor in (grad, query, out))
        k, v = (tensor[:, :, start:stop].contiguous() for tensor in (key, value))
        grads = part.backward(g, q, k, v, o, sums[:, :, stop:end].reshape(1, kv_heads, -1), part_kept, False)
        d_query[:, :, stop:end] += grads[0].reshape(1, heads, end - stop, -1)
        d_key[:, :, start:stop] += grads[1]
        d_value[:, :, start:stop] += grads[2]
    return d_query.to(query.dtype), d_key.to(query.dtype), d_value.to(query.dtype)


def _own(tensor: Any, indices: Any, heads: int | None = None) -> Any:
    """The tokens of a class of segments, [segments, heads, longest, …]; key-value heads repeated to `heads`."""
    taken = tensor[:, :, indices] if isinstance(indices, slice) else tensor[0][:, indices].transpose(0, 1)
    if heads is not None and heads != taken.shape[1]:
        taken = taken.repeat_interleave(heads // taken.shape[1], 1)
    return taken.contiguous()


def _scatter(target: Any, values: Any, indices: Any, padding: Any) -> None:
    """Write `values` [segments, heads, longest, …] to the tokens of `target` [heads, tokens, …], without padding."""
    if isinstance(indices, slice):
        target[:, indices] = values[0]
        return
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

    part, part_sums = part.float().reshape(out.shape), part_sums.reshape(sums.shape)
    joined = torch.logaddexp(sums, part_sums)
    out.mul_((sums - joined).exp_().unsqueeze(-1)).addcmul_(part, (part_sums - joined).exp_().unsqueeze(-1))
    sums.copy_(joined)
