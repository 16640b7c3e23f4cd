"""The loss of a batch with nothing computed twice: no padding, the shared instruction once, frozen layers once.

The rows of a piece lie one after the other in a single sequence, behind the prefix that all of them share. An attention
function of our own lets each row see the prefix and itself. The result is that of computing every row whole, to float
precision; the tokens computed fall from the sum of B·(P+S) to P + the sum of S.

When only the upper layers are tuned, the layers below the first adapter give the same output for a row in every epoch:
it is computed once and kept, as long as it fits into `CACHE_BYTES`.

Gradients flow through the prefix as well: its keys and values in the tuned layers depend on the adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from finetune_pipeline.train.encode import Encoded

CACHE_BYTES = 2 * 1024**3
ATTENTION = "finetune_packed"


class PackedModel:
    """`model`: a transformers causal LM of the Llama family or alike (`model.model.layers`, `model.lm_head`), already
    wrapped by peft; `prefix`: token ids shared by all rows; `frozen`: how many lower layers carry no adapter."""

    def __init__(self, model: Any, prefix: Sequence[int], frozen: int) -> None:
        register_attention()
        model.config._attn_implementation = ATTENTION
        self._head = model.lm_head
        self._inner = model.model
        self._layers, self._norm = self._inner.layers, self._inner.norm
        self._prefix, self._frozen = list(prefix), frozen
        self._kept: dict[str, Any] = {}
        self._bytes = 0

    @property
    def prefix_tokens(self) -> int:
        return len(self._prefix)

    def loss(self, rows: Sequence[Encoded]) -> tuple[Any, int]:
        """Sum of the negative log likelihoods (nats) of the supervised tokens, with gradient, and their number."""
        import torch

        device = self._head.weight.device
        lengths, taken, targets = self._layout(rows)
        hidden = self._hidden(rows, lengths)
        picked = hidden.index_select(0, torch.tensor(taken, device=device))
        logits = self._head(picked).float()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets, device=device), reduction="sum")
        return loss, len(targets)

    def _layout(self, rows: Sequence[Encoded]) -> tuple[list[int], list[int], list[int]]:
        """Lengths of the parts (prefix first), places whose output predicts a supervised token, and those tokens."""
        start = len(self._prefix)
        lengths, at = [start], start
        taken: list[int] = []
        targets: list[int] = []
        for row in rows:
            own = len(row.prompt) - start
            taken += range(at + own - 1, at + own - 1 + len(row.answer))
            targets += row.answer
            lengths.append(own + len(row.answer))
            at += lengths[-1]
        return lengths, taken, targets

    def _hidden(self, rows: Sequence[Encoded], lengths: list[int]) -> Any:
        """Last hidden states of the packed sequence, (tokens, hidden)."""
        if not self._frozen:
            return self._run(self._layers, self._norm, rows, lengths, embedded=None)
        return self._run(self._layers[self._frozen :], self._norm, rows, lengths, self._below(rows))

    def _below(self, rows: Sequence[Encoded]) -> Any:
        """Output of the frozen layers for the packed sequence; rows seen before come from memory."""
        import torch

        missing = [row for row in rows if row.id not in self._kept]
        fresh: dict[str, Any] = {}
        if missing or "" not in self._kept:
            lengths = self._layout(missing)[0]
            with torch.no_grad():
                out = self._run(self._layers[: self._frozen], torch.nn.Identity(), missing, lengths, embedded=None)
            fresh = dict(zip(("", *(row.id for row in missing)), out.split(lengths), strict=True))
            for key, part in fresh.items():
                size = part.numel() * part.element_size()
                if key not in self._kept and self._bytes + size <= CACHE_BYTES:
                    self._kept[key] = part.clone()
                    self._bytes += size
        return torch.cat([fresh.get(key, self._kept.get(key)) for key in ("", *(row.id for row in rows))])

    def _run(self, layers: Any, norm: Any, rows: Sequence[Encoded], lengths: list[int], embedded: Any) -> Any:
        """Some of the layers over the packed sequence; `embedded` (tokens, hidden) stands in for the embedding."""
        import torch

        start, device = len(self._prefix), self._head.weight.device
        places = [*range(start), *(place for length in lengths[1:] for place in range(start, start + length))]
        positions = torch.tensor([places], device=device)
        if embedded is None:
            ids = [*self._prefix, *(token for row in rows for token in row.ids[start:])]
            given = {"input_ids": torch.tensor([ids], device=device)}
        else:
            given = {"inputs_embeds": embedded[None]}
        self._inner.layers, self._inner.norm = layers, norm
        try:
            out = self._inner(**given, position_ids=positions, use_cache=False, parts=tuple(lengths))
        finally:
            self._inner.layers, self._inner.norm = self._layers, self._norm
        return out.last_hidden_state[0]


def register_attention() -> None:
    """Make the packed attention known to transformers under its name (harmless when it is already)."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, _attend)


def _attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    parts: tuple[int, ...] = (),
    **_: Any,
) -> tuple[Any, None]:
    """Attention of a packed sequence (batch 1): each part sees the first part and itself, causally."""
    import torch

    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    queries, keys, values = (tensor.split(parts, dim=2) for tensor in (query, key, value))
    outs = [attend(queries[0], keys[0], values[0], is_causal=True)]
    for q, k, v in zip(queries[1:], keys[1:], values[1:], strict=True):
        both = torch.cat((keys[0], k), 2), torch.cat((values[0], v), 2)
        outs.append(attend(q, *both, attn_mask=_mask(parts[0], q.shape[2], q.device, q.dtype)))
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


@functools.lru_cache(maxsize=512)
def _mask(prefix: int, own: int, device: Any, dtype: Any) -> Any:
    """(own, prefix + own): the whole prefix, and one's own part causally."""
    import torch

    mask = torch.zeros(own, prefix + own, device=device, dtype=dtype)
    mask[:, prefix:] = torch.full((own, own), float("-inf"), device=device, dtype=dtype).triu(1)
    return mask
