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
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from finetune_pipeline.train.encode import Encoded

CACHE_BYTES = 2 * 1024**3
ATTENTION = "finetune_packed"


@dataclass(frozen=True, slots=True)
class _Parts:
    """How the packed sequence is cut for attention: `lengths` in tokens; the first `shared` parts are the prefix and
    the rows behind it, the others see themselves only."""

    lengths: tuple[int, ...]
    shared: int


@dataclass(frozen=True)
class _Sequence:
    """One packed sequence: `prefix`, what `rows` hold behind it, and the whole of the rows `apart`."""

    prefix: Sequence[int]
    rows: Sequence[Encoded]
    apart: Sequence[Encoded]

    @functools.cached_property
    def pieces(self) -> list[tuple[str, Sequence[int], int]]:
        """(row id or "" for the prefix, token ids, position of the first) of every part, in order."""
        start = len(self.prefix)
        head = [("", self.prefix, 0)] if self.rows else []
        behind = [(row.id, row.ids[start:], start) for row in self.rows]
        return [*head, *behind, *((row.id, row.ids, 0) for row in self.apart)]

    @property
    def keys(self) -> list[str]:
        return [key for key, _, _ in self.pieces]

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for _, ids, _ in self.pieces]

    @property
    def ids(self) -> list[int]:
        return [token for _, ids, _ in self.pieces for token in ids]

    @property
    def positions(self) -> list[int]:
        return [place for _, ids, start in self.pieces for place in range(start, start + len(ids))]

    @property
    def parts(self) -> _Parts:
        return _Parts(tuple(self.lengths), len(self.pieces) - len(self.apart))

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

    def without(self, known: Collection[str]) -> _Sequence:
        """What is left when the parts in `known` are taken out; rows that are left keep their prefix."""
        rows, apart = ([row for row in some if row.id not in known] for some in (self.rows, self.apart))
        return _Sequence(self.prefix, rows, apart)


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
        loss, _ = self.forward(rows)
        return loss, sum(len(row.answer) for row in rows)

    def forward(self, rows: Sequence[Encoded], apart: Sequence[Encoded] = ()) -> tuple[Any, Any]:
        """The summed loss of `rows` (see `loss`), and the logits [tokens, vocabulary] that predict every token of
        `apart` but each row's first, both with gradient. Rows in `apart` need not begin with the prefix."""
        import torch

        packed = _Sequence(self._prefix if rows else [], rows, apart)
        hidden = self._hidden(packed)

        def logits(places: list[int]) -> Any:
            return self._head(hidden.index_select(0, torch.tensor(places, device=hidden.device))).float()

        targets = torch.tensor([token for row in rows for token in row.answer], device=hidden.device)
        loss = torch.nn.functional.cross_entropy(logits(packed.supervised), targets, reduction="sum") if rows else None
        return loss, logits(packed.apart_places) if apart else None

    def _hidden(self, packed: _Sequence) -> Any:
        """Last hidden states of the packed sequence, (tokens, hidden)."""
        if not self._frozen:
            return self._run(self._layers, self._norm, packed, embedded=None)
        return self._run(self._layers[self._frozen :], self._norm, packed, self._below(packed))

    def _below(self, packed: _Sequence) -> Any:
        """Output of the frozen layers for the packed sequence; rows seen before come from memory."""
        import torch

        missing = packed.without(self._kept)
        fresh: dict[str, Any] = {}
        if missing.lengths:
            with torch.no_grad():
                out = self._run(self._layers[: self._frozen], torch.nn.Identity(), missing, embedded=None)
            fresh = dict(zip(missing.keys, out.split(missing.lengths), strict=True))
            for key, part in fresh.items():
                size = part.numel() * part.element_size()
                if key not in self._kept and self._bytes + size <= CACHE_BYTES:
                    self._kept[key] = part.clone()
                    self._bytes += size
        return torch.cat([fresh.get(key, self._kept.get(key)) for key in packed.keys])

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
            out = self._inner(**given, position_ids=positions, use_cache=False, parts=packed.parts)
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
    parts: _Parts | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Attention of a packed sequence (batch 1): rows see the first part and themselves, causally; rows apart only
    themselves. Without `parts` the sequence is one row."""
    import torch

    attend = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling, enable_gqa=True)
    cut = parts or _Parts((query.shape[2],), 0)
    queries, keys, values = (tensor.split(cut.lengths, dim=2) for tensor in (query, key, value))
    outs = []
    for place, (q, k, v) in enumerate(zip(queries, keys, values, strict=True)):
        if 0 < place < cut.shared:
            both = torch.cat((keys[0], k), 2), torch.cat((values[0], v), 2)
            outs.append(attend(q, *both, attn_mask=_mask(cut.lengths[0], q.shape[2], q.device, q.dtype)))
        else:
            outs.append(attend(q, k, v, is_causal=True))
    return torch.cat(outs, 2).transpose(1, 2).contiguous(), None


@functools.lru_cache(maxsize=512)
def _mask(prefix: int, own: int, device: Any, dtype: Any) -> Any:
    """(own, prefix + own): the whole prefix, and one's own part causally."""
    import torch

    mask = torch.zeros(own, prefix + own, device=device, dtype=dtype)
    mask[:, prefix:] = torch.full((own, own), float("-inf"), device=device, dtype=dtype).triu(1)
    return mask
