"""Attention over a packed sequence: each row attends to the shared prefix and itself, standalone rows to themselves.

    register_attention()
    model.config._attn_implementation = ATTENTION
    model.model(input_ids=…, position_ids=…, segments=Segments((2, 4, 4, 3), sharing=3, masks=CausalMasks(2)))

It is registered with transformers' `AttentionInterface`; the model passes the keyword argument `segments` on to it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.inference.model_family import require_forwarded, require_plain_attention

ATTENTION = "finetune_packed"
ROUND_UP = 64  # tokens; so that the mask does not grow with every row that is a token longer


class CausalMasks:
    """Causal masks [own, prefix + own] for `own` tokens behind `prefix` tokens, 0 or -inf. All are slices of one mask
    that grows to the longest row, which bounds the memory however many lengths there are."""

    def __init__(self, prefix: int) -> None:
        self._prefix = prefix
        self._largest: Any = None

    def __call__(self, own: int, like: Any) -> Any:
        """The mask for `own` tokens, with the device and dtype of the tensor `like`."""
        import torch

        mask = self._largest
        if mask is None or mask.shape[0] < own or (mask.device, mask.dtype) != (like.device, like.dtype):
            size = -(-own // ROUND_UP) * ROUND_UP
            mask = torch.zeros(size, self._prefix + size, device=like.device, dtype=like.dtype)
            mask[:, self._prefix :] = torch.full_like(mask[:, self._prefix :], float("-inf")).triu(1)
            self._largest = mask
        return mask[:own, : self._prefix + own]


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of a packed sequence: `lengths` in tokens; the first `sharing` are the prefix and the rows behind
    it, the others are standalone."""

    lengths: tuple[int, ...]
    sharing: int
    masks: CausalMasks

    @property
    def longest(self) -> int:
        """The longest row in tokens, including the prefix if it has one."""
        behind = self.lengths[0] + max(self.lengths[1 : self.sharing], default=0) if self.sharing else 0
        return max(behind, *self.lengths)


def register_attention() -> None:
    """Register the attention function with transformers. Idempotent."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, packed_attention)


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    segments: Segments | None = None,
    **arguments: Any,
) -> tuple[Any, None]:
    """The attention function, as transformers calls it, for a batch of one packed sequence.

    `query` [1, heads, tokens, size], `key` and `value` [1, kv heads, tokens, size]; returns [1, tokens, heads, size].
    ModelError when the model does not pass `segments` on, or its attention is not plain.
    """
    import torch

    require_forwarded(module, "segments", segments)
    assert segments is not None  # noqa: S101 (for mypy)
    require_plain_attention(module, arguments, segments.longest)

    dtype, on_cpu = query.dtype, query.device.type == "cpu"
    if on_cpu:  # forward and backward take 16 ms a layer in fp32, 24 ms in bf16
        query, key, value = query.float(), key.float(), value.float()
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    queries, keys, values = (tensor.split(segments.lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    with torch.autocast(query.device.type, enabled=not on_cpu and torch.is_autocast_enabled(query.device.type)):
        for index, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
            if 0 < index < segments.sharing:
                with_prefix = torch.cat((keys[0], k), 2), torch.cat((values[0], v), 2)
                outputs.append(attend(q, *with_prefix, attn_mask=segments.masks(q.shape[2], q)))
            else:
                outputs.append(attend(q, k, v, is_causal=True))
    return torch.cat(outputs, 2).to(dtype).transpose(1, 2).contiguous(), None
