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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.attention_limits import refuse
from finetune_pipeline.errors import ModelError
from finetune_pipeline.train.encode import Encoded

CACHE_BYTES = 2 * 1024**3
ATTENTION = "finetune_packed"
ROUND_UP = 64  # so that the mask is not made anew for every row that is a token longer
_HINT = "choose a base model of the Llama, Qwen, Mistral, SmolLM or Phi families"


class PackedModel:
    """`model`: a transformers causal LM of the Llama family or alike (`model.model.layers`, `model.lm_head`), already
    wrapped by peft; `prefix`: token ids shared by all rows. What is frozen is read from the weights themselves: the
    layers below the lowest one that has a trainable weight now."""

    def __init__(self, model: Any, prefix: Sequence[int]) -> None:
        register_attention()
        model.config._attn_implementation = ATTENTION
        self._model, self._head, self._inner = model, model.lm_head, model.model
        self._layers, self._norm = self._inner.layers, self._inner.norm
        self._prefix, self._frozen = list(prefix), frozen_layers(model)
        self._masks = _Masks(len(self._prefix))
        self._kept: dict[tuple[int, ...], Any] = {}
        self._bytes = 0

    @property
    def prefix_tokens(self) -> int:
        return len(self._prefix)

    def loss(self, rows: Sequence[Encoded]) -> tuple[Any, int]:
        """Sum of the negative log likelihoods (nats) of the supervised tokens, with gradient, and their number."""
        losses = self.token_losses(rows)
        return losses.sum(), len(losses)

    def token_losses(self, rows: Sequence[Encoded]) -> Any:
        """Negative log likelihoods (nats) of all supervised tokens, row by row, with gradient."""
        import torch

        device = self._head.weight.device
        lengths, taken, targets = self._layout(rows)
        hidden = self._hidden(rows, lengths)
        picked = hidden.index_select(0, torch.tensor(taken, device=device))
        logits = self._head(picked).float()
        return torch.nn.functional.cross_entropy(logits, torch.tensor(targets, device=device), reduction="none")

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """The model in eval mode within the block, and each of its parts in its own mode again afterwards."""
        modes = [(part, part.training) for part in self._model.modules()]
        self._model.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training

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

        keys = [(), *(tuple(row.ids) for row in rows)]  # the tokens, not the id: nothing else decides the output
        missing = [row for row, key in zip(rows, keys[1:], strict=True) if key not in self._kept]
        fresh: dict[tuple[int, ...], Any] = {}
        if missing or () not in self._kept:
            lengths = self._layout(missing)[0]
            with torch.no_grad():
                out = self._run(self._layers[: self._frozen], torch.nn.Identity(), missing, lengths, embedded=None)
            fresh = dict(zip(((), *(tuple(row.ids) for row in missing)), out.split(lengths), strict=True))
            for key, part in fresh.items():
                size = part.numel() * part.element_size()
                if key not in self._kept and self._bytes + size <= CACHE_BYTES:
                    self._kept[key] = part.clone()
                    self._bytes += size
        return torch.cat([fresh[key] if key in fresh else self._kept[key] for key in keys])

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
            out = self._inner(**given, position_ids=positions, use_cache=False, parts=_Parts(lengths, self._masks))
        finally:
            self._inner.layers, self._inner.norm = self._layers, self._norm
        return out.last_hidden_state[0]


def frozen_layers(model: Any) -> int:
    """How many of the lowest layers give the same output in every step: those below the first trainable weight."""
    if any(weight.requires_grad for weight in model.get_input_embeddings().parameters()):
        return 0
    tuned = [any(weight.requires_grad for weight in layer.parameters()) for layer in model.model.layers]
    return tuned.index(True) if True in tuned else 0


class _Masks:
    """Causal masks behind a prefix of so many tokens, (own, prefix + own), 0 or -inf: cut out of a single one, which
    grows to the longest row. Memory is bounded by that row, however many lengths there are."""

    def __init__(self, prefix: int) -> None:
        self._prefix = prefix
        self._whole: Any = None

    def __call__(self, own: int, like: Any) -> Any:
        import torch

        whole = self._whole
        if whole is None or whole.shape[0] < own or (whole.device, whole.dtype) != (like.device, like.dtype):
            size = -(-own // ROUND_UP) * ROUND_UP
            whole = torch.zeros(size, self._prefix + size, device=like.device, dtype=like.dtype)
            whole[:, self._prefix :] = torch.full_like(whole[:, self._prefix :], float("-inf")).triu(1)
            self._whole = whole
        return whole[:own, : self._prefix + own]


@dataclass(frozen=True)
class _Parts:
    """Lengths of the parts of a packed sequence, the prefix first, and the masks for them."""

    lengths: list[int]
    masks: _Masks


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
    parts: _Parts | None = None,
    **arguments: Any,
) -> tuple[Any, None]:
    """Attention of a packed sequence (batch 1): each part sees the first part and itself, causally."""
    import torch

    if parts is None:
        raise ModelError(f"{type(module).__name__} does not pass `parts` on to its attention", _HINT)
    prefix, *own = parts.lengths
    refuse(module, arguments, prefix + max(own, default=0))
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    queries, keys, values = (tensor.split(parts.lengths, dim=2) for tensor in (query, key, value))
    outs = [attend(queries[0], keys[0], values[0], is_causal=True)]
    for q, k, v in zip(queries[1:], keys[1:], values[1:], strict=True):
        both = torch.cat((keys[0], k), 2), torch.cat((values[0], v), 2)
        outs.append(attend(q, *both, attn_mask=parts.masks(q.shape[2], q)))
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None
