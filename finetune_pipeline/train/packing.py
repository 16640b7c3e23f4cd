"""The loss of a batch without repeated work: no padding, the shared prompt prefix once, frozen layers once per row.

    packed = PackedModel(model, prefix_ids)
    loss, supervised_tokens = packed.loss(rows)      # sum over the tokens of the completions, in nats, with gradient

The rows of a micro-batch are packed into one sequence behind their shared prefix (train/packed_sequence.py), and each
attends to the prefix and itself (train/packed_attention.py). The result equals that of computing every row separately,
to float precision. For B rows with a prefix of P tokens and Sᵢ own tokens each, it computes P + ΣSᵢ tokens instead of
B·P + ΣSᵢ. Standalone rows (the general texts of train/replay.py) do not begin with the prefix.

When only the upper layers are tuned, the layers below the first adapter have the same output for a row in every epoch:
it is computed once and cached, up to `CACHE_BYTES`. Gradients flow through the prefix, too, because its keys and values
in the tuned layers depend on the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from finetune_pipeline.inference.model_family import decoder_parts
from finetune_pipeline.train.packed_attention import ATTENTION, CausalMasks, Segments, register_attention
from finetune_pipeline.train.packed_sequence import PackedSequence, SegmentKey
from finetune_pipeline.train.tokenize import TokenizedExample

CACHE_BYTES = 2 * 1024**3


class PackedModel:
    """`model`: a transformers causal LM with peft's layers in it (not peft's wrapper); `prefix`: the token ids that all
    rows begin with. The frozen layers are those below the lowest layer with a trainable weight, now."""

    def __init__(self, model: Any, prefix: Sequence[int]) -> None:
        register_attention()
        model.config._attn_implementation = ATTENTION
        self._model, self._parts = model, decoder_parts(model)
        self._prefix, self._frozen = list(prefix), frozen_layers(model)
        self._masks = CausalMasks(len(self._prefix))
        self._cache: dict[SegmentKey, Any] = {}
        self._cached_bytes = 0

    @property
    def prefix_tokens(self) -> int:
        return len(self._prefix)

    @property
    def vocabulary(self) -> int:
        return int(self._parts.head.weight.shape[0])

    def loss(self, rows: Sequence[TokenizedExample]) -> tuple[Any, int]:
        """Sum of the negative log likelihoods (nats) of the supervised tokens, with gradient, and their number."""
        loss, _ = self.forward(rows)
        return loss, sum(len(row.completion) for row in rows)

    def token_losses(self, rows: Sequence[TokenizedExample]) -> Any:
        """Negative log likelihoods (nats) [supervised tokens], row by row, with gradient."""
        packed = PackedSequence(self._prefix, rows, ())
        return self._losses(packed, self._hidden(packed), "none")

    def forward(self, rows: Sequence[TokenizedExample], standalone: Sequence[TokenizedExample] = ()) -> tuple[Any, Any]:
        """The summed loss of `rows` (None without rows), and the hidden states [tokens, hidden] (None without
        `standalone`) whose `logits` predict every token of `standalone` but each row's first. Both with gradient."""
        packed = PackedSequence(self._prefix if rows else [], rows, standalone)
        hidden = self._hidden(packed)
        loss = self._losses(packed, hidden, "sum") if rows else None
        return loss, _select(hidden, packed.standalone_indices) if standalone else None

    def logits(self, hidden: Any) -> Any:
        """Logits [tokens, vocabulary] in fp32 of hidden states [tokens, hidden]."""
        return self._parts.head(hidden).float()

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """The model in eval mode within the block; afterwards every module in its previous mode."""
        modes = [(module, module.training) for module in self._model.modules()]
        self._model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training

    def _losses(self, packed: PackedSequence, hidden: Any, reduction: str) -> Any:
        import torch

        targets = torch.tensor([token for row in packed.rows for token in row.completion], device=hidden.device)
        logits = self.logits(_select(hidden, packed.supervised))
        return torch.nn.functional.cross_entropy(logits, targets, reduction=reduction)

    def _hidden(self, packed: PackedSequence) -> Any:
        """Last hidden states [tokens, hidden] of the packed sequence."""
        parts = self._parts
        if not self._frozen:
            return self._run(parts.layers, parts.norm, packed, embeddings=None)
        return self._run(parts.layers[self._frozen :], parts.norm, packed, self._frozen_output(packed))

    def _frozen_output(self, packed: PackedSequence) -> Any:
        """Output [tokens, hidden] of the frozen layers; segments that were computed before come from the cache."""
        import torch

        missing = packed.without(self._cache)
        computed: dict[SegmentKey, Any] = {}
        if missing.lengths:
            with torch.no_grad():
                out = self._run(self._parts.layers[: self._frozen], torch.nn.Identity(), missing, embeddings=None)
            computed = dict(zip(missing.keys, out.split(missing.lengths), strict=True))
            for key, states in computed.items():
                size = states.numel() * states.element_size()
                if key not in self._cache and self._cached_bytes + size <= CACHE_BYTES:
                    self._cache[key] = states.clone()
                    self._cached_bytes += size
        return torch.cat([computed[key] if key in computed else self._cache[key] for key in packed.keys])

    def _run(self, layers: Any, norm: Any, packed: PackedSequence, embeddings: Any) -> Any:
        """Output [tokens, hidden] of some of the layers; `embeddings` [tokens, hidden] replace the token embedding."""
        import torch

        device = self._parts.head.weight.device
        if embeddings is None:
            inputs = {"input_ids": torch.tensor([packed.ids], device=device)}
        else:
            inputs = {"inputs_embeds": embeddings[None]}
        positions = torch.tensor([packed.positions], device=device)
        segments = Segments(tuple(packed.lengths), packed.sharing, self._masks)
        with self._parts.only(layers, norm):
            out = self._parts.backbone(**inputs, position_ids=positions, use_cache=False, segments=segments)
        return out.last_hidden_state[0]


def frozen_layers(model: Any) -> int:
    """The number of decoder layers below the first trainable weight: their output for a row is the same in every
    step. 0 when the embedding is trainable, or nothing is."""
    if any(weight.requires_grad for weight in model.get_input_embeddings().parameters()):
        return 0
    layers = decoder_parts(model).layers
    tuned = [any(weight.requires_grad for weight in layer.parameters()) for layer in layers]
    return tuned.index(True) if True in tuned else 0


def _select(hidden: Any, indices: list[int]) -> Any:
    import torch

    return hidden.index_select(0, torch.tensor(indices, device=hidden.device))
