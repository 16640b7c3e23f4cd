"""One forward pass of a causal language model over rows of different ages, without padding; with a shared prefix.

    rows = BatchedModel(model, prefix_ids)
    logits = rows(running=[DecodeSequence(last_token, base, own)], joining=[PrefillSequence(own_ids, base, keep=[-1])])

`base` is the number of tokens a row takes from the shared prefix (all of it or none), `own` the number of its own
tokens in the cache. Running rows are those in places 0 to n-1 of the cache; joining rows get the places after them.

What it is not: who joins and leaves (inference/decoder.py), or the arithmetic of attention (inference/attention.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.attention import KVCache, PrefillSlice, Step, attending

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class DecodeSequence:
    token: int
    base: int
    own: int


@dataclass(frozen=True, slots=True)
class PrefillSequence:
    """`keep`: the own tokens after which logits are wanted. `cached`: whether the row runs on afterwards."""

    ids: Sequence[int]
    base: int
    keep: Sequence[int]
    cached: bool = True


@dataclass(slots=True)
class ChunkedPrefill:
    """A prompt that is read in pieces: `ids` are its own tokens, of which `done` lie in a cache of its own."""

    ids: Sequence[int]
    base: int
    cache: KVCache = field(default_factory=KVCache)
    done: int = 0

    @property
    def complete(self) -> bool:
        return self.done == len(self.ids)


class BatchedModel:
    """See the module's docstring. `model` is a transformers causal LM, or peft's wrapper of one, in eval mode."""

    def __init__(self, model: Any, prefix_ids: Sequence[int] = ()) -> None:
        """Computes the prefix, with the adapter that is active now."""
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._config = self._model.config.get_text_config()
        weight = next(self._model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self.prefix = list(prefix_ids)
        self.cache = KVCache()
        if self.prefix:
            self.cache.reserve(1, len(self.prefix), used=0)
            self([], [PrefillSequence(self.prefix, 0, [len(self.prefix) - 1])])
            self.cache.keep_as_prefix(len(self.prefix))

    @property
    def context(self) -> int | None:
        """The most tokens the model was made for; None where its configuration says nothing."""
        return getattr(self._config, "max_position_embeddings", None)

    def base(self, prompt: Sequence[int]) -> int:
        """How many of the prompt's tokens come from the prefix: all, or none. Each row has one of its own."""
        shared = len(self.prefix)
        return shared if shared < len(prompt) and list(prompt[:shared]) == self.prefix else 0

    def __call__(self, running: Sequence[DecodeSequence], joining: Sequence[PrefillSequence]) -> Tensor:
        """Logits [running + all that joining rows keep, vocabulary], in this order. ModelError: see attention.py."""
        ids, positions = [row.token for row in running], [row.base + row.own for row in running]
        keep, fresh = list(range(len(running))), []
        for place, row in enumerate(joining, len(running)):
            mask = self._causal(len(row.ids), row.base) if row.base else None
            slot = place if row.cached else None
            fresh.append(PrefillSlice(slot, len(ids), len(ids) + len(row.ids), mask, prefixed=row.base > 0))
            keep += [len(ids) + i for i in row.keep]
            positions += range(row.base, row.base + len(row.ids))
            ids += row.ids
        return self._forward(self._step(self.cache, running, fresh, max(positions) + 1), ids, positions, keep)

    def read(self, reading: ChunkedPrefill, tokens: int) -> Tensor:
        """The next `tokens` of a prompt; logits [1, vocabulary] after the last of them."""
        if not reading.done:
            reading.cache.reserve(1, len(reading.ids), used=0)
            reading.cache.prefix = self.cache.prefix
        ids = list(reading.ids[reading.done : reading.done + tokens])
        before = reading.base + reading.done
        mask = self._causal(len(ids), before) if before else None
        fresh = [PrefillSlice(0, 0, len(ids), mask, prefixed=reading.base > 0, done=reading.done)]
        step = self._step(reading.cache, [], fresh, before + len(ids))
        logits = self._forward(step, ids, range(before, before + len(ids)), [len(ids) - 1])
        reading.done += len(ids)
        return logits

    def _forward(self, step: Step, ids: Sequence[int], positions: Sequence[int], keep: Sequence[int]) -> Tensor:
        import torch

        with torch.inference_mode(), attending(self._config):
            logits: Tensor = self._model(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.tensor([list(positions)], device=self._device),
                use_cache=False,
                logits_to_keep=torch.tensor(keep, device=self._device),
                rows=step,
            ).logits[0]
        self._all_layers(step.layers)
        return logits

    def _step(self, cache: KVCache, running: Sequence[DecodeSequence], fresh: list[PrefillSlice], reach: int) -> Step:
        import torch

        lengths = torch.tensor([row.own for row in running], dtype=torch.long, device=self._device)
        longest = max((row.own for row in running), default=0)
        shared = len(self.prefix) if self.cache.prefix else 0
        own = torch.arange(longest + 1, device=self._device)[None] <= lengths[:, None]
        prefixed = torch.tensor([row.base > 0 for row in running], dtype=torch.bool, device=self._device)
        seen = torch.cat((prefixed[:, None].expand(-1, shared), own), dim=1)
        mask = torch.zeros(seen.shape, dtype=self._dtype, device=self._device).masked_fill_(~seen, float("-inf"))
        return Step(cache, len(running), lengths, longest, mask[:, None, None], fresh, reach)

    def _causal(self, tokens: int, before: int) -> Tensor:
        """Boolean [tokens, before + tokens]: each token sees what came before it, and itself."""
        import torch

        return torch.ones(tokens, before + tokens, dtype=torch.bool, device=self._device).tril(diagonal=before)

    def _all_layers(self, seen: int) -> None:
        layers = self._config.num_hidden_layers
        if seen != layers:
            raise ModelError(
                f"{type(self._model).__name__} sends {seen} of {layers} layers through transformers' attention "
                "interface; computing by rows needs all of them",
                "choose a base model whose layers are all attention layers (Llama, Qwen, SmolLM, Phi, Granite, ...)",
            )
