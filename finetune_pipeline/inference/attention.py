"""Attention over sequences of different lengths in one flat sequence, so that a batch can change between steps.

    with attending(model.config):
        model(input_ids=ids, position_ids=positions, batch=BatchLayout(cache, …))      # ids [1, tokens]

A step of the decoder is one forward pass over [1, T] tokens: first one token for each sequence that is being decoded,
then the prompts of those that are prefilled. Linear layers compute one matrix without padding; only attention has to
know which token belongs to which sequence. It is registered with transformers' `AttentionInterface`, so that it works
for every architecture that uses it, and the model passes the keyword argument `batch` on to it.

The KV cache of a prefix that all sequences share is stored once (`KVCache.prefix`) and read once per step: its scores
are one matrix product for all sequences, concatenated with each sequence's own scores before one softmax. This is
exact, not an approximation.

What it is not: paged attention. The cache is a rectangle [sequences, heads, capacity, size] as long as the longest
sequence, and the sequences being decoded are always the first ones: the last one replaces one that has finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_pipeline.inference.kv_cache import KVCache
from finetune_pipeline.inference.model_family import require_forwarded, require_plain_attention

if TYPE_CHECKING:
    from torch import Tensor

NAME = "finetune_batched"


@dataclass
class PrefillSlice:
    """The tokens `start` to `stop` of the flat sequence are (a chunk of) a prompt, whose keys and values are stored in
    `slot` of the cache (None: not stored, because the sequence is not decoded).

    `mask`: boolean [tokens, prefix + done + tokens], true where attention is allowed; None for plain causal attention.
    `prefixed`: whether the prompt begins with the shared prefix; `done`: its own tokens that are in the cache already,
    when it is prefilled in chunks.
    """

    slot: int | None
    start: int
    stop: int
    mask: Tensor | None
    prefixed: bool
    done: int = 0


@dataclass
class BatchLayout:
    """Which tokens of a forward pass belong to which sequence.

    `decoding`: the number of sequences with one token each; `lengths` [decoding]: their own tokens in the cache;
    `longest`: the largest of these; `mask`: 0 or -inf, [decoding, 1, 1, prefix + longest + 1]; `prefills`: the prompts;
    `max_tokens`: tokens of the longest sequence, prefix included; `layers`: counts the attention layers that ran.
    """

    cache: KVCache
    decoding: int
    lengths: Tensor
    longest: int
    mask: Tensor
    prefills: list[PrefillSlice]
    max_tokens: int
    layers: int = 0


@contextmanager
def attending(config: Any) -> Iterator[None]:
    """Within the block, the model of `config` uses `batched_attention`; afterwards its previous attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, batched_attention)
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def batched_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    batch: BatchLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function, as transformers calls it. `query` [1, heads, T, size], `key` and `value` [1, kv heads, T,
    size]; returns [1, T, heads, size]. `batch` is passed by inference/batched_forward.py.

    ModelError for unsupported attention: soft-capped scores, sinks, a window shorter than a sequence.
    """
    import torch

    require_forwarded(module, "batch", batch)
    assert batch is not None  # noqa: S101 (for mypy)
    require_plain_attention(module, kwargs, batch.max_tokens)
    batch.layers += 1
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    keys, values = batch.cache.layer(module.layer_idx, key, value)
    layer = _Layer(query, key, value, keys, values, batch.cache.prefix.get(module.layer_idx), scale)
    outputs = [_prefill(part, layer) for part in batch.prefills]
    if batch.decoding:
        outputs.insert(0, _decode(batch, layer))
    return torch.cat(outputs, dim=0).unsqueeze(0), None


@dataclass(frozen=True, slots=True)
class _Layer:
    """The tensors of one attention layer in this forward pass: `query`, `key` and `value` of the new tokens (as in
    `batched_attention`), `keys` and `values` of the cache [slots, kv heads, capacity, size], and those of the shared
    prefix [kv heads, prefix, size]. `scale` is multiplied with the scores."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    prefix: tuple[Tensor, Tensor] | None
    scale: float


def _decode(batch: BatchLayout, layer: _Layer) -> Tensor:
    """One new token for each of the first n sequences; returns [n, heads, size].

    Query heads that share a key-value head (grouped-query attention) are one dimension of a matrix product, instead of
    repeating keys and values.
    """
    import torch

    query, keys, values, prefix = layer.query, layer.keys, layer.values, layer.prefix
    n, length = batch.decoding, batch.longest + 1
    slots = torch.arange(n, device=query.device)
    keys[slots, :, batch.lengths] = layer.key[0, :, :n].transpose(0, 1)
    values[slots, :, batch.lengths] = layer.value[0, :, :n].transpose(0, 1)
    heads, size = keys.shape[1], query.shape[-1]
    queries = query[0, :, :n].transpose(0, 1).reshape(n, heads, -1, size) * layer.scale  # [n, heads, group, size]
    scores = queries @ keys[:n, :, :length].transpose(-1, -2)
    if prefix is not None:
        flat = queries.transpose(0, 1).reshape(heads, -1, size)  # [heads, n * group, size]
        shared = (flat @ prefix[0].transpose(-1, -2)).view(heads, n, -1, prefix[0].shape[1]).transpose(0, 1)
        scores = torch.cat((shared, scores), dim=-1)
    weights = torch.softmax(scores + batch.mask, dim=-1, dtype=torch.float32).to(query.dtype)
    start = 0 if prefix is None else prefix[0].shape[1]
    out = weights[..., start:] @ values[:n, :, :length]
    if prefix is not None:
        from_prefix = weights[..., :start].transpose(0, 1).reshape(heads, -1, start) @ prefix[1]
        out = out + from_prefix.view(heads, n, -1, values.shape[-1]).transpose(0, 1)
    return out.reshape(n, -1, values.shape[-1])


def _prefill(part: PrefillSlice, layer: _Layer) -> Tensor:
    """A prompt or a chunk of it; returns [tokens, heads, size]."""
    import torch

    keys, values, prefix = layer.keys, layer.values, layer.prefix
    q, k, v = (t[:, :, part.start : part.stop] for t in (layer.query, layer.key, layer.value))
    end = part.done + part.stop - part.start
    if part.slot is not None:
        keys[part.slot, :, part.done : end] = k[0]
        values[part.slot, :, part.done : end] = v[0]
        if part.done:
            k, v = keys[None, part.slot, :, :end], values[None, part.slot, :, :end]
    if part.prefixed and prefix is not None:
        k = torch.cat((prefix[0].unsqueeze(0), k), dim=2)
        v = torch.cat((prefix[1].unsqueeze(0), v), dim=2)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=part.mask, is_causal=part.mask is None, scale=layer.scale, enable_gqa=True
    )
    return out[0].transpose(0, 1)
