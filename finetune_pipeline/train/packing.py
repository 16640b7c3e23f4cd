"""The forward pass without repeated work: no padding, shared prefixes and prompts once, frozen layers once per row.

    forward = PackedForward(model, prefix_ids)
    losses = forward.losses(rows)                  # nats [learned tokens], with gradient

The rows of a micro-batch are one sequence, a tree (train/tree.py) in which each token attends to what is before it in
its own row (train/tree_attention.py). The result equals that of computing every row separately, to float precision.
For B rows with a prefix of P tokens and Sᵢ own tokens each, it computes P + ΣSᵢ tokens instead of B·P + ΣSᵢ.

When only the upper layers are tuned, the layers below the first trainable weight have the same output for a row in
every epoch: it is computed once and cached, up to `CACHE_BYTES`. Gradients flow through the prefix, too, because its
keys and values in the tuned layers depend on the trained weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from finetune_pipeline.inference.model_family import DecoderParts, decoder_parts
from finetune_pipeline.models.training_load import Load
from finetune_pipeline.train.checkpointing import checkpointed
from finetune_pipeline.train.forward import Forward, attention, frozen_layers, learned
from finetune_pipeline.train.tokenize import TokenizedExample
from finetune_pipeline.train.tree import PackedTree, SegmentKey, is_below
from finetune_pipeline.train.tree_attention import ATTENTION, Masks, TreeLayout, register_attention

CACHE_BYTES = 2 * 1024**3


class FrozenStates(dict[SegmentKey, Any]):
    """Outputs [tokens, hidden] of the frozen layers by segment, up to CACHE_BYTES. They hold for one base model, number
    of frozen layers, precision and shared prefix."""

    size = 0  # bytes

    def keep(self, key: SegmentKey, states: Any) -> None:
        """Add a copy of `states`, unless it is there or does not fit."""
        size = states.numel() * states.element_size()
        if key not in self and self.size + size <= CACHE_BYTES:
            self[key] = states.clone()
            self.size += size


class PackedForward(Forward):
    """`prefix`: the token ids that the rows begin with; a row that begins otherwise is a tree of its own. The frozen
    layers are those below the lowest layer with a trainable weight, now; `cache`: their outputs, as far as known."""

    name = "packed"

    def __init__(self, model: Any, prefix: Sequence[int], cache: FrozenStates | None = None) -> None:
        super().__init__(model)
        register_attention()
        self._parts, self._prefix = decoder_parts(model), list(prefix)
        self._frozen = frozen_layers(model)
        self._masks = Masks()
        self._cache = FrozenStates() if cache is None else cache

    @property
    def prefix_tokens(self) -> int:
        return len(self._prefix)

    def states(self, rows: Sequence[TokenizedExample]) -> Any:
        import torch

        packed = PackedTree.of(self._prefix, rows)
        if self._frozen:
            output = self._frozen_output(packed)
            with self._parts.only(_substitutes(self._parts, self._frozen, output), self._parts.norm):
                hidden = self._run(packed)
        else:
            hidden = self._run(packed)
        return hidden.index_select(0, torch.tensor(packed.wanted, device=hidden.device))

    def _new(self) -> PackedForward:
        return PackedForward(self.model, self._prefix)

    def forget_frozen(self) -> None:
        self._frozen, self._cache = 0, FrozenStates()

    def micro_batches(self, rows: Sequence[TokenizedExample], max_tokens: int) -> list[list[TokenizedExample]]:
        return packed_parts(self._prefix, rows, max_tokens)

    def computed_tokens(self, rows: Sequence[TokenizedExample]) -> int:
        return sum(PackedTree.of(self._prefix, rows).lengths)

    def load(self, rows: Sequence[TokenizedExample], general: int = 0, padding: bool = True) -> Load:
        return packed_load(self._prefix, rows, general)

    def _frozen_output(self, packed: PackedTree) -> Any:
        """Output [tokens, hidden] of the frozen layers; segments that were computed before come from the cache."""
        import torch

        missing = packed.without(self._cache)
        computed: dict[SegmentKey, Any] = {}
        if missing.segments:
            layers = torch.nn.ModuleList(
                [layer if index < self._frozen else _pass(layer) for index, layer in enumerate(self._parts.layers)]
            )
            with torch.no_grad(), self._parts.only(layers, torch.nn.Identity()):
                out = self._run(missing)
            computed = dict(zip(missing.keys, out.split(missing.lengths), strict=True))
            for key, states in computed.items():
                self._cache.keep(key, states)
        return torch.cat([computed[key] if key in computed else self._cache[key] for key in packed.keys])

    def _run(self, packed: PackedTree) -> Any:
        """Output [tokens, hidden] of the backbone."""
        import torch

        device = self._parts.head.weight.device
        with self._attention(), self._checkpointed():
            out = self.run_backbone(
                input_ids=torch.tensor([packed.ids], device=device),
                position_ids=torch.tensor([packed.positions], device=device),
                use_cache=False,
                tree=TreeLayout(packed, self._masks),
            )
        return out.last_hidden_state[0]

    def _attention(self) -> AbstractContextManager[None]:
        return attention(self.model, ATTENTION)

    def _checkpointed(self) -> AbstractContextManager[None]:
        tuned = self._parts.layers[self._frozen :]
        return checkpointed(tuned, self._attention) if self.checkpointing else nullcontext()


def packed_parts(
    prefix: Sequence[int], rows: Sequence[TokenizedExample], max_tokens: int
) -> list[list[TokenizedExample]]:
    """The rows, sorted by length, in parts of at most `max_tokens` tokens as packed rows."""
    parts: list[list[TokenizedExample]] = []
    room = 0
    for row in sorted(rows, key=lambda row: row.tokens):
        above = len(prefix) if is_below(row, prefix) else 0
        own = len(row.prompt) - above + sum(len(completion.ids) for completion in row.completions)
        if not parts or own > room:
            parts.append([])
            room = max_tokens - len(prefix)
        parts[-1].append(row)
        room -= own
    return parts


def packed_load(prefix: Sequence[int], rows: Sequence[TokenizedExample], general: int = 0) -> Load:
    """The load of these rows as one packed micro-batch; the last `general` of them are general texts."""
    tree = PackedTree.of(prefix, rows)
    above = [sum(tree.lengths[index] for index in path) for path in tree.paths]
    return Load.of(tree.lengths, above, learned(rows), learned(rows[len(rows) - general :]))


def _substitutes(parts: DecoderParts, frozen: int, output: Any) -> Any:
    """The decoder layers with the frozen ones replaced by their `output` [tokens, hidden]. Their number stays, because
    backbones select masks and rotary embeddings by the index of a layer."""
    import torch

    below = [_pass(layer) for layer in parts.layers[: frozen - 1]]
    return torch.nn.ModuleList([*below, _pass(parts.layers[frozen - 1], output), *parts.layers[frozen:]])


def _pass(layer: Any, output: Any = None) -> Any:
    """A module in place of a decoder layer that returns its input, or `output` [tokens, hidden]; other attributes are
    those of `layer`."""
    import torch

    class Pass(torch.nn.Module):  # type: ignore[misc]
        def forward(self, hidden_states: Any, *_: Any, **__: Any) -> Any:
            return hidden_states if output is None else output[None]

        def __getattr__(self, name: str) -> Any:
            return getattr(layer, name)

    return Pass()
