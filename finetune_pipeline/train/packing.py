"""The loss of a batch with nothing computed twice: no padding, the shared instruction once, frozen layers once.

The rows of a piece lie one after the other in a single sequence, behind the prefix that all of them share. An attention
function of our own lets each row see the prefix and itself. The result is that of computing every row whole, to float
precision; the tokens computed fall from the sum of Pᵢ+Sᵢ to P + the sum of Sᵢ. Rows that do not begin with the prefix
(`apart`: general texts, see replay.py) lie behind the others and see themselves only.

When only the upper layers are tuned, the layers below the first adapter give the same output for a row in every epoch:
it is computed once and kept, as long as it fits into `CACHE_BYTES`.

Gradients flow through the prefix as well: its keys and values in the tuned layers depend on the adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.attention_limits import refuse
from finetune_pipeline.train.tokenize import Encoded

CACHE_BYTES = 2 * 1024**3
ATTENTION = "finetune_packed"
ROUND_UP = 64  # so that the mask is not made anew for every row that is a token longer

# Position of the first token, and the tokens: what decides the output of a part. (An id would have to be trusted.)
_Key = tuple[int, tuple[int, ...]]


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


@dataclass(frozen=True, slots=True)
class _Parts:
    """How the packed sequence is cut for attention: `lengths` in tokens; the first `shared` parts are the prefix and
    the rows behind it, the others see themselves only."""

    lengths: tuple[int, ...]
    shared: int
    masks: _Masks

    @property
    def longest(self) -> int:
        """The longest row in tokens, with the prefix where it has one."""
        behind = self.lengths[0] + max(self.lengths[1 : self.shared], default=0) if self.shared else 0
        return max(behind, *self.lengths)


@dataclass(frozen=True)
class _Sequence:
    """One packed sequence: `prefix`, what `rows` hold behind it, and the whole of the rows `apart`."""

    prefix: Sequence[int]
    rows: Sequence[Encoded]
    apart: Sequence[Encoded]

    @functools.cached_property
    def pieces(self) -> list[tuple[int, Sequence[int]]]:
        """(position of the first token, token ids) of every part, in order."""
        start = len(self.prefix)
        head = [(0, self.prefix)] if self.rows else []
        behind = [(start, row.ids[start:]) for row in self.rows]
        return [*head, *behind, *((0, row.ids) for row in self.apart)]

    @functools.cached_property
    def keys(self) -> list[_Key]:
        return [(start, tuple(ids)) for start, ids in self.pieces]

    @functools.cached_property
    def lengths(self) -> list[int]:
        return [len(ids) for _, ids in self.pieces]

    @property
    def ids(self) -> list[int]:
        return [token for _, ids in self.pieces for token in ids]

    @property
    def positions(self) -> list[int]:
        return [place for start, ids in self.pieces for place in range(start, start + len(ids))]

    def parts(self, masks: _Masks) -> _Parts:
        return _Parts(tuple(self.lengths), len(self.pieces) - len(self.apart), masks)

    @property
    def ends(self) -> list[int]:
        """Where each part ends: the place after its last token."""
        return list(accumulate(self.lengths))

    @property
    def supervised(self) -> list[int]:
        """Places whose output predicts a supervised token of `rows`."""
        ends = self.ends[1:]  # the first part is the prefix
        return [i for row, end in zip(self.rows, ends, strict=False) for i in range(end - 1 - len(row.answer), end - 1)]

    @property
    def apart_places(self) -> list[int]:
        """Places whose output predicts a token of the rows apart: all but the last of each."""
        ends = self.ends[len(self.pieces) - len(self.apart) :]
        return [i for row, end in zip(self.apart, ends, strict=True) for i in range(end - len(row.ids), end - 1)]

    def without(self, known: Collection[_Key]) -> _Sequence:
        """What is left when the parts in `known` are taken out; rows that are left keep their prefix."""
        keys = self.keys[len(self.keys) - len(self.rows) - len(self.apart) :]  # the prefix has none of its own
        of_rows, of_apart = keys[: len(self.rows)], keys[len(self.rows) :]
        rows = [row for row, key in zip(self.rows, of_rows, strict=True) if key not in known]
        apart = [row for row, key in zip(self.apart, of_apart, strict=True) if key not in known]
        return _Sequence(self.prefix, rows, apart)


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
        self._kept: dict[_Key, Any] = {}
        self._bytes = 0

    @property
    def prefix_tokens(self) -> int:
        return len(self._prefix)

    def loss(self, rows: Sequence[Encoded]) -> tuple[Any, int]:
        """Sum of the negative log likelihoods (nats) of the supervised tokens, with gradient, and their number."""
        loss, _ = self.forward(rows)
        return loss, sum(len(row.answer) for row in rows)

    def token_losses(self, rows: Sequence[Encoded]) -> Any:
        """Negative log likelihoods (nats) of all supervised tokens, row by row, with gradient."""
        packed = _Sequence(self._prefix, rows, ())
        return self._losses(packed, self._hidden(packed), "none")

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

    def forward(self, rows: Sequence[Encoded], apart: Sequence[Encoded] = ()) -> tuple[Any, Any]:
        """The summed loss of `rows` (see `loss`), and the hidden states [tokens, hidden] whose `logits` predict every
        token of `apart` but each row's first, both with gradient. Rows in `apart` need not begin with the prefix."""
        packed = _Sequence(self._prefix if rows else [], rows, apart)
        hidden = self._hidden(packed)
        loss = self._losses(packed, hidden, "sum") if rows else None
        return loss, self._at(hidden, packed.apart_places) if apart else None

    @property
    def vocabulary(self) -> int:
        return int(self._head.weight.shape[0])

    def logits(self, hidden: Any) -> Any:
        """Logits [tokens, vocabulary] in fp32 of hidden states [tokens, hidden]."""
        return self._head(hidden).float()

    def _losses(self, packed: _Sequence, hidden: Any, reduction: str) -> Any:
        import torch

        targets = torch.tensor([token for row in packed.rows for token in row.answer], device=hidden.device)
        logits = self.logits(self._at(hidden, packed.supervised))
        return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)

    def _at(self, hidden: Any, places: list[int]) -> Any:
        import torch

        return hidden.index_select(0, torch.tensor(places, device=hidden.device))

    def _hidden(self, packed: _Sequence) -> Any:
        """Last hidden states of the packed sequence, (tokens, hidden)."""
        if not self._frozen:
            return self._run(self._layers, self._norm, packed, embedded=None)
        return self._run(self._layers[self._frozen :], self._norm, packed, self._below(packed))

    def _below(self, packed: _Sequence) -> Any:
        """Output of the frozen layers for the packed sequence; rows seen before come from memory."""
        import torch

        missing = packed.without(self._kept)
        fresh: dict[_Key, Any] = {}
        if missing.lengths:
            with torch.no_grad():
                out = self._run(self._layers[: self._frozen], torch.nn.Identity(), missing, embedded=None)
            fresh = dict(zip(missing.keys, out.split(missing.lengths), strict=True))
            for key, part in fresh.items():
                size = part.numel() * part.element_size()
                if key not in self._kept and self._bytes + size <= CACHE_BYTES:
                    self._kept[key] = part.clone()
                    self._bytes += size
        return torch.cat([fresh[key] if key in fresh else self._kept[key] for key in packed.keys])

    def _run(self, layers: Any, norm: Any, packed: _Sequence, embedded: Any) -> Any:
        """Some of the layers over the packed sequence; `embedded` (tokens, hidden) stands in for the embedding."""
        import torch

        device = self._head.weight.device
        positions = torch.tensor([packed.positions], device=device)
        if embedded is None:
            given = {"input_ids": torch.tensor([packed.ids], device=device)}
        else:
            given = {"inputs_embeds": embedded[None]}
        self._inner.layers, self._inner.norm = layers, norm
        try:
            out = self._inner(**given, position_ids=positions, use_cache=False, parts=packed.parts(self._masks))
        finally:
            self._inner.layers, self._inner.norm = self._layers, self._norm
        return out.last_hidden_state[0]


def frozen_layers(model: Any) -> int:
    """How many of the lowest layers give the same output in every step: those below the first trainable weight."""
    if any(weight.requires_grad for weight in model.get_input_embeddings().parameters()):
        return 0
    tuned = [any(weight.requires_grad for weight in layer.parameters()) for layer in model.model.layers]
    return tuned.index(True) if True in tuned else 0


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
    """Attention of a packed sequence (batch 1): rows see the first part and themselves, causally; rows apart only
    themselves. ModelError for a model that does not pass `parts` on, or computes attention in another way."""
    import torch

    if parts is None:
        raise ModelError(f"{type(module).__name__} does not pass `parts` on to its attention", "choose another model")
    refuse(module, arguments, parts.longest)

    dtype, on_processor = query.dtype, query.device.type == "cpu"
    if on_processor:  # its kernels take 16 ms a layer in fp32 where they take 24 in bf16, gradient included
        query, key, value = query.float(), key.float(), value.float()
    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    queries, keys, values = (tensor.split(parts.lengths, dim=2) for tensor in (query, key, value))
    outs = []
    with torch.autocast(query.device.type, enabled=not on_processor and torch.is_autocast_enabled(query.device.type)):
        for place, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
            if 0 < place < parts.shared:
                both = torch.cat((keys[0], k), 2), torch.cat((values[0], v), 2)
                outs.append(attend(q, *both, attn_mask=parts.masks(q.shape[2], q)))
            else:
                outs.append(attend(q, k, v, is_causal=True))
    return torch.cat(outs, 2).to(dtype).transpose(1, 2).contiguous(), None
