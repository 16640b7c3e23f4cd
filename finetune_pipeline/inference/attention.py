"""Attention over rows of different ages in one flat sequence: what lets the decoder add and remove rows between steps.

A step of the decoder is one forward pass over `[1, T]` tokens: first one token of each running row, then whole prompts
of the rows that join. Linear layers see a single matrix without padding; only attention has to know which token
belongs to which row, and that is this file. It is registered with transformers' `AttentionInterface`, so that it
serves every architecture that goes through it; nothing of a model is copied or patched.

The tokens that all rows begin with are kept once (`KVCache.prefix`) and read once per step for all rows together: the
scores against them are one matrix product, joined with each row's own scores in one softmax. Exact, not approximate.

What it is not: paged attention. Rows lie in a rectangle `[rows, heads, capacity, size]` as long as the longest of them,
and running rows are always the first ones: a row that ends is replaced by the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.attention_limits import refuse

if TYPE_CHECKING:
    from torch import Tensor

NAME = "finetune_rows"


@dataclass
class PrefillSlice:
    """A row that joins in this step: tokens `start` to `stop` of the flat sequence are its prompt, and go to `slot`
    of the cache (None: to none, since the row ends here).

    `mask`: boolean [tokens, prefix + done + tokens], true where attention is allowed; None for plain causal attention.
    `prefixed`: whether the row begins with the shared prefix; `done`: its own tokens that are in the cache already,
    when a prompt is read in pieces.
    """

    slot: int | None
    start: int
    stop: int
    mask: Tensor | None
    prefixed: bool
    done: int = 0


@dataclass
class Step:
    """Which token is whose in one forward pass. `lengths` [running] counts the own tokens that a running row already
    has in the cache; `mask` is 0 or -inf, [running, 1, 1, prefix + longest + 1]; `reach` is the longest row in tokens,
    prefix included; `layers` counts the layers that came by."""

    cache: KVCache
    running: int
    lengths: Tensor
    longest: int
    mask: Tensor
    fresh: list[PrefillSlice]
    reach: int
    layers: int = 0


class KVCache:
    """Keys and values: of the shared prefix (once), and of every row's own tokens, `[rows, heads, capacity, size]`
    per layer. Layers are made when they first come by, so that each may have a shape of its own."""

    def __init__(self) -> None:
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.rows = 0
        self.capacity = 0

    def reserve(self, rows: int, capacity: int, used: int) -> None:
        """Make room for `rows` rows of `capacity` own tokens, keeping the first `used` rows as they are."""
        if used == 0:
            if (rows, capacity) != (self.rows, self.capacity):
                self.own.clear()
            self.rows, self.capacity = rows, capacity
            return
        if rows <= self.rows and capacity <= self.capacity:
            return
        old = self.capacity
        self.rows, self.capacity = rows, max(capacity, self.capacity)  # longer rows may leave room for fewer
        for layer, pair in self.own.items():
            wider = tuple(t.new_zeros(self.rows, t.shape[1], self.capacity, t.shape[3]) for t in pair)
            for new, kept in zip(wider, pair, strict=True):
                new[:used, :, :old] = kept[:used]
            self.own[layer] = wider[0], wider[1]

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The rectangle of a layer; made like `key` and `value` [1, heads, tokens, size] at its first use. Zeros, not
        empty memory: a masked place has weight 0, but 0 times a stray NaN is NaN."""
        if index not in self.own:
            self.own[index] = (
                key.new_zeros(self.rows, key.shape[1], self.capacity, key.shape[3]),
                value.new_zeros(self.rows, value.shape[1], self.capacity, value.shape[3]),
            )
        return self.own[index]

    def move(self, source: int, target: int, length: int) -> None:
        """Put the row `source` in the place of `target`, which has ended."""
        import torch

        with torch.inference_mode():
            for tensor in (tensor for pair in self.own.values() for tensor in pair):
                tensor[target, :, :length] = tensor[source, :, :length]

    def adopt(self, slot: int, other: KVCache, length: int) -> None:
        """Copy the first `length` tokens of row 0 of another cache to `slot`."""
        import torch

        with torch.inference_mode():
            for layer, pair in other.own.items():
                for mine, theirs in zip(self.layer(layer, *pair), pair, strict=True):
                    mine[slot, :, :length] = theirs[0, :, :length]

    def keep_as_prefix(self, length: int) -> None:
        """Make the first `length` tokens of row 0 the shared prefix, and forget the rows."""
        self.prefix = {
            layer: (k[0, :, :length].contiguous(), v[0, :, :length].contiguous()) for layer, (k, v) in self.own.items()
        }
        self.own, self.rows, self.capacity = {}, 0, 0


@contextmanager
def attending(config: Any) -> Iterator[None]:
    """Let the model behind `config` attend by rows within the block, and as before afterwards."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    rows: Step | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function, as transformers calls it. Query is [1, heads, T, size], key and value [1, kv heads, T,
    size]; gives [1, T, heads, size]. `rows` comes from the caller of the model (inference/batched_forward.py).

    ModelError for what it does not compute: soft-capped scores, sinks, a window that a row outgrows.
    """
    import torch

    if rows is None:
        raise ModelError(
            f"{type(module).__name__} does not pass `rows` on to its attention", "choose another base model"
        )
    refuse(module, kwargs, rows.reach)
    rows.layers += 1
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    keys, values = rows.cache.layer(module.layer_idx, key, value)
    prefix = rows.cache.prefix.get(module.layer_idx)
    parts = [_fresh(f, query, key, value, keys, values, prefix, scale) for f in rows.fresh]
    if rows.running:
        parts.insert(0, _running(rows, query, key, value, keys, values, prefix, scale))
    return torch.cat(parts, dim=0).unsqueeze(0), None


def _running(
    rows: Step,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
    scale: float,
) -> Tensor:
    """One new token for each of the first n rows; gives [n, heads, size].

    The heads that share a key-value head (grouped queries) are laid side by side instead of copying keys and values.
    """
    import torch

    n, long = rows.running, rows.longest + 1
    places = torch.arange(n, device=query.device)
    keys[places, :, rows.lengths] = key[0, :, :n].transpose(0, 1)
    values[places, :, rows.lengths] = value[0, :, :n].transpose(0, 1)
    heads, size = keys.shape[1], query.shape[-1]
    asked = query[0, :, :n].transpose(0, 1).reshape(n, heads, -1, size) * scale  # [n, heads, group, size]
    scores = asked @ keys[:n, :, :long].transpose(-1, -2)
    if prefix is not None:
        together = asked.transpose(0, 1).reshape(heads, -1, size)  # [heads, n * group, size]
        shared = (together @ prefix[0].transpose(-1, -2)).view(heads, n, -1, prefix[0].shape[1]).transpose(0, 1)
        scores = torch.cat((shared, scores), dim=-1)
    weights = torch.softmax(scores + rows.mask, dim=-1, dtype=torch.float32).to(query.dtype)
    start = 0 if prefix is None else prefix[0].shape[1]
    out = weights[..., start:] @ values[:n, :, :long]
    if prefix is not None:
        seen = weights[..., :start].transpose(0, 1).reshape(heads, -1, start) @ prefix[1]
        out = out + seen.view(heads, n, -1, values.shape[-1]).transpose(0, 1)
    return out.reshape(n, -1, values.shape[-1])


def _fresh(
    row: PrefillSlice,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    prefix: tuple[Tensor, Tensor] | None,
    scale: float,
) -> Tensor:
    """The prompt of a row that joins, or a piece of it; gives [tokens, heads, size]."""
    import torch

    q, k, v = (t[:, :, row.start : row.stop] for t in (query, key, value))
    end = row.done + row.stop - row.start
    if row.slot is not None:
        keys[row.slot, :, row.done : end] = k[0]
        values[row.slot, :, row.done : end] = v[0]
        if row.done:
            k, v = keys[None, row.slot, :, :end], values[None, row.slot, :, :end]
    if row.prefixed and prefix is not None:
        k = torch.cat((prefix[0].unsqueeze(0), k), dim=2)
        v = torch.cat((prefix[1].unsqueeze(0), v), dim=2)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=row.mask, is_causal=row.mask is None, scale=scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)
