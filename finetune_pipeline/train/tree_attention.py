"""Attention over a packed tree: a token attends to its own segment up to itself, and to the segments above.

    register_attention()
    model.config._attn_implementation = ATTENTION
    model.model(input_ids=…, position_ids=…, tree=TreeLayout(packed))

It is registered with transformers' `AttentionInterface`; the model passes the keyword argument `tree` on to it. What
the model's own attention does besides (a window, soft-capped scores, sinks) arrives as keyword arguments and is
computed as well. On a GPU it is one call of FlexAttention (Dong et al., arXiv:2412.05496) with a block mask; on a CPU a
few calls for parts of it (cpu_attention.py), or one call for each segment where the attention is not plain: a
masked call over everything would compute what is masked.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from finetune_pipeline.inference.model_family import require_causal, require_forwarded
from finetune_pipeline.train import cpu_attention
from finetune_pipeline.train.tree import PackedTree

ATTENTION = "finetune_tree"
ROUND_UP = 64  # tokens; so that a mask does not grow with every segment that is a token longer
KNOWN = {"dropout", "position_ids", "use_cache", "cache_position", "output_attentions", "is_causal"}


class Masks:
    """Masks [own, above + own] of 0 and -inf for `own` tokens behind `above` tokens. All are slices of one mask per
    window that grows to the longest segment, which bounds the memory however many lengths there are."""

    def __init__(self) -> None:
        self._largest: dict[int | None, tuple[Any, int]] = {}

    def __call__(self, own: int, above: int, window: int | None, like: Any) -> Any:
        """`window`: a token attends to this many tokens, itself included; None: to all. Device and dtype of `like`."""
        import torch

        mask, room = self._largest.get(window, (None, 0))
        fits = mask is not None and mask.shape[0] >= own and room >= above
        if not fits or (mask.device, mask.dtype) != (like.device, like.dtype):
            size, room = -(-own // ROUND_UP) * ROUND_UP, max(room, -(-above // ROUND_UP) * ROUND_UP)
            allowed = torch.ones(size, room + size, dtype=torch.bool, device=like.device).tril(room)
            if window is not None:
                allowed &= ~torch.ones_like(allowed).tril(room - window)
            mask = torch.zeros(allowed.shape, device=like.device, dtype=like.dtype)
            mask.masked_fill_(~allowed, float("-inf"))
            self._largest[window] = mask, room
        return mask[:own, room - above : room + own]


@dataclass
class TreeLayout:
    """What attention needs of a packed tree. `masks` may be shared by the layouts of a training; `layers` counts the
    attention layers that ran."""

    packed: PackedTree
    masks: Masks = field(default_factory=Masks)
    layers: int = 0
    _block_masks: dict[int | None, Any] = field(default_factory=dict)

    @functools.cached_property
    def cascade(self) -> cpu_attention.CascadePlan:
        return cpu_attention.plan_of(self.packed)

    def block_mask(self, window: int | None, device: Any) -> Any:
        """FlexAttention's mask of the whole tree."""
        from torch.nn.attention.flex_attention import create_block_mask

        if window not in self._block_masks:
            tokens = sum(self.packed.lengths)
            self._block_masks[window] = create_block_mask(
                self._allowed(window, device), None, None, tokens, tokens, device=device
            )
        return self._block_masks[window]

    def _allowed(self, window: int | None, device: Any) -> Any:
        """FlexAttention's `mask_mod`."""
        import torch

        packed, count = self.packed, len(self.packed.segments)
        above = torch.zeros(count, count, dtype=torch.bool)
        for index, path in enumerate(packed.paths):
            above[index, [*path, index]] = True
        above = above.to(device)
        segment = torch.repeat_interleave(torch.arange(count), torch.tensor(packed.lengths)).to(device)
        position = torch.tensor(packed.positions, device=device)
        reach = packed.longest if window is None else window

        def allowed(batch: Any, head: Any, query: Any, key: Any) -> Any:
            near = position[query] - position[key] < reach
            return above[segment[query], segment[key]] & (query >= key) & near

        return allowed


def register_attention() -> None:
    """Register the attention function with transformers. Idempotent."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, tree_attention)


def tree_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Any = None,
    tree: TreeLayout | None = None,
    **arguments: Any,
) -> tuple[Any, None]:
    """The attention function, as transformers calls it, for a batch of one packed tree.

    `query` [1, heads, tokens, size], `key` and `value` [1, kv heads, tokens, size]; returns [1, tokens, heads, size].
    ModelError when the model does not pass `tree` on, ValueError for an argument whose meaning is unknown.
    """
    require_forwarded(module, "tree", tree)
    require_causal(module)
    assert tree is not None  # noqa: S101 (for mypy)
    unknown = sorted(name for name, given in arguments.items() if given is not None and name not in KNOWN)
    if unknown:
        raise ValueError(f"{type(module).__name__} passes `{unknown[0]}` to its attention function")
    tree.layers += 1
    window = None if sliding_window is None or sliding_window >= tree.packed.longest else int(sliding_window)
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else float(scaling)
    plain = softcap is None and window is None and s_aux is None
    if query.device.type == "cpu" and plain:
        out = _cascade(query, key, value, tree, scale)
    elif query.device.type == "cuda" and s_aux is None:
        out = _flex(query, key, value, tree, scale, window, softcap)
    else:
        out = _by_segment(query, key, value, tree, functools.partial(_attend, scale, softcap, s_aux), window)
    return out.transpose(1, 2).contiguous(), None


def _cascade(query: Any, key: Any, value: Any, tree: TreeLayout, scale: float) -> Any:
    """A few calls for the whole tree; [1, heads, tokens, size]. In bf16 where the training is."""
    import torch

    narrow = torch.is_autocast_enabled("cpu") or query.dtype == torch.bfloat16
    return cpu_attention.attend(query, key, value, tree.cascade, scale, narrow)


def _by_segment(query: Any, key: Any, value: Any, tree: TreeLayout, attend: Any, window: int | None) -> Any:
    """One call of `attend` for each segment; [1, heads, tokens, size]."""
    import torch

    dtype, packed, on_cpu = query.dtype, tree.packed, query.device.type == "cpu"
    if on_cpu:  # forward and backward take 16 ms a layer in fp32, 24 ms in bf16
        query, key, value = query.float(), key.float(), value.float()
    queries, keys, values = (tensor.split(packed.lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    with torch.autocast(query.device.type, enabled=not on_cpu and torch.is_autocast_enabled(query.device.type)):
        for index, path in enumerate(packed.paths):
            k, v = (_joined(parts, path, index, window) for parts in (keys, values))
            own = packed.lengths[index]
            plain = k.shape[2] == own and (window is None or window >= own)
            mask = None if plain else tree.masks(own, k.shape[2] - own, window, query)
            outputs.append(attend(queries[index], k, v, mask))
    return torch.cat(outputs, 2).to(dtype)


def _joined(parts: Any, path: tuple[int, ...], index: int, window: int | None) -> Any:
    """Keys or values of the segments above (as far as the window reaches), and of the segment itself."""
    import torch

    if not path:
        return parts[index]
    above = torch.cat([parts[each] for each in path], 2) if len(path) > 1 else parts[path[0]]
    if window is not None:
        above = above[:, :, max(0, above.shape[2] - window + 1) :]
    return torch.cat((above, parts[index]), 2)


def _attend(scale: float, softcap: float | None, sinks: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
    """Attention of one segment; `mask` [own, above + own], None: causal. [1, heads, own, size]."""
    import torch

    if softcap is None and sinks is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
    groups = query.shape[1] // key.shape[1]
    scores = (query * scale) @ key.repeat_interleave(groups, 1).transpose(-1, -2)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf"), device=query.device, dtype=query.dtype).triu(1)
    scores = scores + mask
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(1, -1, scores.shape[2], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = torch.softmax(scores.float(), dim=-1).to(query.dtype)[..., : key.shape[2]]
    return weights @ value.repeat_interleave(groups, 1)


def _flex(
    query: Any, key: Any, value: Any, tree: TreeLayout, scale: float, window: int | None, softcap: float | None
) -> Any:
    """One call of FlexAttention for the whole tree; [1, heads, tokens, size]."""
    import torch

    def capped(score: Any, batch: Any, head: Any, at: Any, to: Any) -> Any:
        return torch.tanh(score / softcap) * softcap

    # a fixed dtype: under autocast, rotary embeddings leave queries and keys in fp32, values in bf16
    query, key = query.to(value.dtype), key.to(value.dtype)
    return _compiled_flex(query.device.type)(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=tree.block_mask(window, query.device),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


@functools.cache
def _compiled_flex(device: str) -> Any:
    """FlexAttention as a compiled kernel on a GPU; elsewhere as torch computes it without compiler, which is slow."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention
