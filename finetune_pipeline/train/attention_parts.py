"""One part of attention on a CPU: queries against one range of keys, with the log-sum-exps by which parts are joined.

    out, sums, kept = part.forward(query, key, value, causal=True)       # part: FlashPart() or MatmulPart()

In fp32 it is torch's flash kernel. In bf16 it is matrix products, as that kernel does not use the processor's bf16
instructions: forward and backward of 1,299 queries and 568 keys in 3 heads of 64 took 16 and 6 ms (AMD EPYC with
AVX512-BF16, 2 threads). Scores are rounded to bf16, as in transformers' `eager` attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from finetune_pipeline.models.training_memory import KEPT_KEYS

CAUSAL_BLOCK = 256  # queries of a causal part that are computed together: what is masked is computed as well
BLOCK_SCORES, LEAST_BLOCK = 2**22, 64  # scores that are computed together, in fp32; but at least so many queries

Kept = tuple[Any, ...]  # tensors, or None


class Part(Protocol):
    """`query` [n, heads, queries, size]; `key`, which is scaled, and `value` [n, heads, keys, size]; all of `dtype`.
    `causal`: query i attends to the keys up to i (there are as many)."""

    dtype: Any

    def forward(self, query: Any, key: Any, value: Any, causal: bool) -> tuple[Any, Any, Kept]:
        """Output (any dtype), its log-sum-exps [n, heads, queries] in fp32, and what `backward` needs besides."""

    def backward(
        self, grad: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, kept: Kept, causal: bool
    ) -> tuple[Any, Any, Any]:
        """Gradients of query, key and value. `grad`, `out` and `sums`: of all parts joined."""


class FlashPart:
    """torch's flash kernel, in fp32."""

    def __init__(self) -> None:
        import torch

        self.dtype = torch.float32
        self._forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        self._backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def forward(self, query: Any, key: Any, value: Any, causal: bool) -> tuple[Any, Any, Kept]:
        out, sums = self._forward(query, key, value, 0.0, causal, scale=1.0)
        return out, sums, ()

    def backward(
        self, grad: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, kept: Kept, causal: bool
    ) -> tuple[Any, Any, Any]:
        grads: tuple[Any, Any, Any] = self._backward(
            grad, query, key, value, out, sums.contiguous(), 0.0, causal, scale=1.0
        )
        return grads


class MatmulPart:
    """Matrix products in bf16, with the softmax in fp32; a block of queries at a time."""

    def __init__(self) -> None:
        import torch

        self.dtype = torch.bfloat16

    def forward(self, query: Any, key: Any, value: Any, causal: bool) -> tuple[Any, Any, Kept]:
        import torch

        q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
        outs, sums, kept = [], [], []
        for start, stop, end in _blocks(q, k, causal):
            weights, part_sums = _weights(q[:, start:stop], k[:, :end], causal)
            outs.append(torch.bmm(weights, v[:, :end]))
            sums.append(part_sums)
            kept.append(weights if k.shape[1] <= KEPT_KEYS else None)
        out, part_sums = torch.cat(outs, 1), torch.cat(sums, 1)
        return out.unflatten(0, query.shape[:2]), part_sums.unflatten(0, query.shape[:2]), (part_sums, *kept)

    def backward(
        self, grad: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, kept: Kept, causal: bool
    ) -> tuple[Any, Any, Any]:
        import torch

        part_sums, *weights = kept
        q, k, v, g, o = (tensor.flatten(0, 1) for tensor in (query, key, value, grad, out))
        share = (part_sums - sums.flatten(0, 1)).exp_().unsqueeze(-1)  # of this part in the joined weights
        mean = (torch.linalg.vecdot(g.float(), o.float()).unsqueeze(-1) * share).to(self.dtype)
        g = (g * share).to(self.dtype)
        d_query, d_key, d_value = [], torch.zeros(k.shape), torch.zeros(v.shape)
        for block, (start, stop, end) in enumerate(_blocks(q, k, causal)):
            part = weights[block]
            if part is None:
                part = _weights(q[:, start:stop], k[:, :end], causal)[0]
            grad_block = g[:, start:stop]
            d_value[:, :end] += torch.bmm(part.transpose(1, 2), grad_block)
            scores = torch.bmm(grad_block, v[:, :end].transpose(1, 2)).sub_(mean[:, start:stop]).mul_(part)
            d_query.append(torch.bmm(scores, k[:, :end]))
            d_key[:, :end] += torch.bmm(scores.transpose(1, 2), q[:, start:stop])
        first, second, third = (each.unflatten(0, query.shape[:2]) for each in (torch.cat(d_query, 1), d_key, d_value))
        return first, second, third


def _weights(query: Any, key: Any, causal: bool) -> tuple[Any, Any]:
    """Softmax of the scores [n, queries, keys] in bf16, and their log-sum-exps in fp32. `causal`: the last query
    attends to every key."""
    import torch

    scores = torch.bmm(query, key.transpose(1, 2)).float()
    if causal:
        count = query.shape[1]
        masked = torch.ones(count, count, dtype=torch.bool).triu(1)
        scores[..., -count:].masked_fill_(masked, float("-inf"))
    weights = torch.softmax(scores, -1)
    # the largest weight is exp(largest score - log-sum-exp)
    return weights.to(query.dtype), scores.amax(-1) - weights.amax(-1).log_()


def _blocks(query: Any, key: Any, causal: bool) -> Iterator[tuple[int, int, int]]:
    """(start, stop, end): the queries start to stop attend to keys before `end`."""
    count, keys = query.shape[1], key.shape[1]
    most = max(LEAST_BLOCK, BLOCK_SCORES // (query.shape[0] * keys))
    size = min(most, CAUSAL_BLOCK) if causal else most
    size = -(-count // -(-count // size))  # as even as possible
    for start in range(0, count, size):
        stop = min(start + size, count)
        yield start, stop, stop if causal else keys
