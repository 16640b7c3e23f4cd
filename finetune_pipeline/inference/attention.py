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

A family's own attention is computed as its own code does: scores capped by `softcap * tanh(score / softcap)` (Gemma 2),
windows (Mistral, Gemma, Cohere 2: batch_layout.py), and a learned score per head that takes part in the softmax and has
no value (attention sinks, `s_aux`: GPT-OSS).

What it is not: paged attention. The cache is a rectangle [sequences, heads, capacity, size] as long as the longest
sequence, and the sequences being decoded are always the first ones: the last one replaces one that has finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_pipeline.inference.batch_layout import BatchLayout, PrefillSlice
from finetune_pipeline.inference.model_family import require_causal, require_forwarded

if TYPE_CHECKING:
    from torch import Tensor

NAME = "finetune_batched"
QUERY_BLOCK = 512  # queries whose scores are in memory at once where the kernel of torch does not apply


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
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function, as transformers calls it. `query` [1, heads, T, size], `key` and `value` [1, kv heads, T,
    size], `s_aux` [heads]; returns [1, T, heads, size]. `batch` is passed by inference/batched_forward.py.

    ModelError for a model that does not pass `batch` on, or whose attention is not causal.
    """
    import torch

    require_forwarded(module, "batch", batch)
    assert batch is not None  # noqa: S101 (for mypy)
    require_causal(module)
    batch.layers += 1
    scale = scaling if scaling is not None else float(query.shape[-1]) ** -0.5
    keys, values = batch.cache.layer(module.layer_idx, key, value)
    prefix = batch.cache.prefix.get(module.layer_idx)
    layer = _Layer(query, key, value, keys, values, prefix, scale, sliding_window, softcap, s_aux)
    outputs = [_prefill(part, batch, layer) for part in batch.prefills]
    if batch.decoding:
        outputs.insert(0, _decode(batch, layer))
    return torch.cat(outputs, dim=0).unsqueeze(0), None


@dataclass(frozen=True, slots=True)
class _Layer:
    """The tensors of one attention layer in this forward pass: `query`, `key` and `value` of the new tokens (as in
    `batched_attention`), `keys` and `values` of the cache [slots, kv heads, capacity, size], and those of the shared
    prefix [kv heads, prefix, size]. `scale` is multiplied with the scores; `window` in tokens; `softcap` and `sinks`
    [heads] or None."""

    query: Tensor
    key: Tensor
    value: Tensor
    keys: Tensor
    values: Tensor
    prefix: tuple[Tensor, Tensor] | None
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None

    def weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The softmax in fp32 of `scores` [n, kv heads, group, keys] + `mask`, capped before, in the query's dtype."""
        import torch

        if self.softcap is not None:
            scores = torch.tanh(scores.float() / self.softcap) * self.softcap
        scores = scores + mask
        if self.sinks is None:
            return torch.softmax(scores, dim=-1, dtype=torch.float32).to(self.query.dtype)
        heads = scores.shape[1]
        sinks = self.sinks.to(scores.dtype).view(1, heads, -1, 1)
        if sinks.shape[2] != scores.shape[2]:  # [kv heads, group * queries]: every query of a head has the same sink
            sinks = sinks.repeat_interleave(scores.shape[2] // sinks.shape[2], dim=2)
        scores = torch.cat((scores, sinks.expand(len(scores), -1, -1, 1)), dim=-1)
        return torch.softmax(scores, dim=-1, dtype=torch.float32)[..., :-1].to(self.query.dtype)


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
    weights = layer.weights(scores, batch.decode_mask(layer.window))
    start = 0 if prefix is None else prefix[0].shape[1]
    out = weights[..., start:] @ values[:n, :, :length]
    if prefix is not None:
        from_prefix = weights[..., :start].transpose(0, 1).reshape(heads, -1, start) @ prefix[1]
        out = out + from_prefix.view(heads, n, -1, values.shape[-1]).transpose(0, 1)
    return out.reshape(n, -1, values.shape[-1])


def _prefill(part: PrefillSlice, batch: BatchLayout, layer: _Layer) -> Tensor:
    """A prompt or a chunk of it; returns [tokens, heads, size]."""
    import torch

    keys, values, prefix = layer.keys, layer.values, layer.prefix
    q, k, v = (t[:, :, part.start : part.stop] for t in (layer.query, layer.key, layer.value))
    end = part.done + part.tokens
    if part.slot is not None:
        keys[part.slot, :, part.done : end] = k[0]
        values[part.slot, :, part.done : end] = v[0]
        if part.done:
            k, v = keys[None, part.slot, :, :end], values[None, part.slot, :, :end]
    if part.prefix and prefix is not None:
        k = torch.cat((prefix[0].unsqueeze(0), k), dim=2)
        v = torch.cat((prefix[1].unsqueeze(0), v), dim=2)
    mask = batch.prefill_mask(part, layer.window)
    if layer.softcap is not None or layer.sinks is not None:
        return _explicit(q[0], k[0], v[0], mask, layer)
    if q.is_cuda and (mask is not None or q.dtype == torch.float32):  # grouped heads would take a kernel of much memory
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=layer.scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[0].transpose(0, 1)


def _explicit(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, layer: _Layer) -> Tensor:
    """Attention with its scores in memory, QUERY_BLOCK queries at a time, for what torch's kernel does not compute.
    `q` [heads, tokens, size], `k` and `v` [kv heads, keys, size], `mask` boolean [tokens, keys], None for causal;
    returns [tokens, heads, size]."""
    import torch

    (heads, tokens, size), groups = q.shape, k.shape[0]
    if mask is None:
        mask = torch.ones(tokens, k.shape[1], dtype=torch.bool, device=q.device).tril()
    blocks = []
    for start in range(0, tokens, QUERY_BLOCK):
        block, allowed = q[:, start : start + QUERY_BLOCK], mask[start : start + QUERY_BLOCK]
        count = block.shape[1]
        scores = (block.reshape(groups, -1, size) * layer.scale) @ k.transpose(-1, -2)  # [groups, group * count, keys]
        hidden = torch.zeros(allowed.shape, dtype=torch.float32, device=q.device)
        hidden.masked_fill_(~allowed, float("-inf"))
        weights = layer.weights(scores.unsqueeze(0), hidden.repeat(heads // groups, 1))
        blocks.append((weights[0] @ v).view(heads, count, -1).transpose(0, 1))
    return torch.cat(blocks)
