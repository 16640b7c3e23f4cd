"""One forward pass of a causal language model over a batch without padding: decoded and prefilled sequences together.

    batched = BatchedModel(model, prefix_ids)
    logits = batched([DecodeSequence(last_token, base, own)], [PrefillSequence(own_ids, base, keep=[-1])])

`base` is the number of tokens that a sequence takes from the shared prefix (all of it or none), `own` the number of its
own tokens in the cache. Decoded sequences are in slots 0 to n-1 of the cache; prefilled ones get the slots after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.attention import attending
from finetune_pipeline.inference.batch_layout import BatchLayout, PrefillSlice
from finetune_pipeline.inference.kv_cache import KVCache
from finetune_pipeline.inference.model_family import HINT, max_sequence_tokens, require_supported

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeSequence:
    """`token`: the last token of the sequence, which is not in the cache yet."""

    token: int
    base: int
    own: int


@dataclass(frozen=True, slots=True)
class PrefillSequence:
    """`ids`: the own tokens; `keep`: indices of those after which logits are returned; `cached`: whether the sequence
    is decoded afterwards."""

    ids: Sequence[int]
    base: int
    keep: Sequence[int]
    cached: bool = True


@dataclass(slots=True)
class ChunkedPrefill:
    """A prompt that is prefilled in chunks: of its own tokens `ids`, the first `done` are in its separate `cache`."""

    ids: Sequence[int]
    base: int
    cache: KVCache = field(default_factory=KVCache)
    done: int = 0

    @property
    def complete(self) -> bool:
        return self.done == len(self.ids)


class BatchedModel:
    """`model`: a transformers causal LM, or peft's wrapper of one, in eval mode; `prefix_ids`: the shared prefix, which
    is computed in the constructor, with the adapter that is active then. ModelError for unsupported architectures."""

    def __init__(self, model: Any, prefix_ids: Sequence[int] = ()) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._config = self._model.config.get_text_config()
        require_supported(self._model.config)
        self._device = next(self._model.parameters()).device
        self.prefix = list(prefix_ids)
        self.cache = KVCache()
        if self.prefix:
            self.cache.reserve(1, len(self.prefix), used=0)
            self([], [PrefillSequence(self.prefix, 0, [len(self.prefix) - 1])])
            self.cache.keep_as_prefix(len(self.prefix))

    @property
    def max_tokens(self) -> int:
        """The longest sequence, prompt and answer, in tokens."""
        return max_sequence_tokens(self._config)

    def base(self, prompt: Sequence[int]) -> int:
        """The number of the prompt's tokens that come from the prefix: all, or 0. One token or more is its own."""
        shared = len(self.prefix)
        return shared if shared < len(prompt) and list(prompt[:shared]) == self.prefix else 0

    def __call__(self, decoding: Sequence[DecodeSequence], prefilling: Sequence[PrefillSequence]) -> Tensor:
        """Logits [decoding + all that prefilled sequences keep, vocabulary], in this order. ModelError for unsupported
        architectures."""
        ids, positions = [s.token for s in decoding], [s.base + s.own for s in decoding]
        keep, prefills = list(range(len(decoding))), []
        for slot, sequence in enumerate(prefilling, len(decoding)):
            start, stop = len(ids), len(ids) + len(sequence.ids)
            prefills.append(PrefillSlice(slot if sequence.cached else None, start, stop, sequence.base))
            keep += [start + i for i in sequence.keep]
            positions += range(sequence.base, sequence.base + len(sequence.ids))
            ids += sequence.ids
        return self._forward(self._layout(self.cache, decoding, prefills), ids, positions, keep)

    def prefill_chunk(self, prompt: ChunkedPrefill, tokens: int) -> Tensor:
        """Prefill the next `tokens` of a prompt; logits [1, vocabulary] after the last of them."""
        if not prompt.done:
            prompt.cache.reserve(1, len(prompt.ids), used=0)
            prompt.cache.prefix = self.cache.prefix
        ids = list(prompt.ids[prompt.done : prompt.done + tokens])
        before = prompt.base + prompt.done
        layout = self._layout(prompt.cache, [], [PrefillSlice(0, 0, len(ids), prompt.base, prompt.done)])
        logits = self._forward(layout, ids, range(before, before + len(ids)), [len(ids) - 1])
        prompt.done += len(ids)
        return logits

    def _forward(
        self, layout: BatchLayout, ids: Sequence[int], positions: Sequence[int], keep: Sequence[int]
    ) -> Tensor:
        import torch

        with torch.inference_mode(), attending(self._config):
            logits: Tensor = self._model(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.tensor([list(positions)], device=self._device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=self._device),
                batch=layout,
            ).logits[0]
        self._require_all_layers(layout.layers)
        return logits

    def _layout(self, cache: KVCache, decoding: Sequence[DecodeSequence], prefills: list[PrefillSlice]) -> BatchLayout:
        import torch

        bases, lengths = (
            torch.tensor(numbers, dtype=torch.long, device=self._device)
            for numbers in ([s.base for s in decoding], [s.own for s in decoding])
        )
        return BatchLayout(cache, bases, lengths, max((s.own for s in decoding), default=0), prefills)

    def _require_all_layers(self, computed: int) -> None:
        layers = self._config.num_hidden_layers
        if computed != layers:
            raise ModelError(
                f"{type(self._model).__name__} computes only {computed} of {layers} layers through transformers' "
                "attention interface; batched decoding requires all of them",
                HINT,
            )
