"""Which tokens of a forward pass belong to which sequence, and which tokens each of them attends to.

    layout = BatchLayout(cache, bases, lengths, longest, prefills)
    layout.decode_mask(None)         # [sequences, 1, 1, prefix + longest + 1], 0 or -inf
    layout.prefill_mask(part, 4)     # [tokens, before + tokens], true where attention is allowed; None: plain causal

A token attends to all earlier tokens of its sequence and itself; with a window w, to itself and the w - 1 tokens before
it (`sliding_window` of transformers), by positions in the sequence, wherever the keys are stored. Layers may differ in
their windows (Gemma 2 and 3 alternate), so masks are made for each window that occurs, once per forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_pipeline.inference.kv_cache import KVCache

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PrefillSlice:
    """The tokens `start` to `stop` of the flat sequence are (a chunk of) a prompt, whose keys and values are stored in
    `slot` of the cache (None: not stored, because the sequence is not decoded).

    `prefix`: the tokens that the prompt takes from the shared prefix (all of it or none); `done`: its own tokens that
    are in the cache already, when it is prefilled in chunks.
    """

    slot: int | None
    start: int
    stop: int
    prefix: int
    done: int = 0

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @property
    def before(self) -> int:
        """The tokens of the sequence before these; so the position of the first of these."""
        return self.prefix + self.done


@dataclass
class BatchLayout:
    """A forward pass: first one token for each decoded sequence, then the prompts `prefills`.

    `bases` and `lengths` [decoding]: the tokens of each decoded sequence in the shared prefix (all of it or none), and
    its own in the cache; `longest`: the largest of `lengths`; `layers`: counts the attention layers that ran.
    """

    cache: KVCache
    bases: Tensor
    lengths: Tensor
    longest: int
    prefills: list[PrefillSlice]
    layers: int = 0
    _decode_masks: dict[int | None, Tensor] = field(default_factory=dict)
    _prefill_masks: dict[tuple[int, int, int | None], Tensor | None] = field(default_factory=dict)

    @property
    def decoding(self) -> int:
        return len(self.lengths)

    def decode_mask(self, window: int | None) -> Tensor:
        """0 or -inf [decoding, 1, 1, prefix + longest + 1], fp32; the last own token of each is the new one."""
        if window not in self._decode_masks:
            self._decode_masks[window] = self._decode_mask(window)
        return self._decode_masks[window]

    def _decode_mask(self, window: int | None) -> Tensor:
        import torch

        device, bases, lengths = self.lengths.device, self.bases[:, None], self.lengths[:, None]
        shared = torch.arange(self.cache.prefix_tokens, device=device)[None]
        own = torch.arange(self.longest + 1, device=device)[None]
        sees_prefix, sees_own = shared < bases, own <= lengths
        if window is not None:
            sees_prefix &= shared > bases + lengths - window
            sees_own &= own > lengths - window
        allowed = torch.cat((sees_prefix, sees_own), dim=1)
        mask = torch.zeros(allowed.shape, dtype=torch.float32, device=device)
        return mask.masked_fill_(~allowed, float("-inf"))[:, None, None]

    def prefill_mask(self, part: PrefillSlice, window: int | None) -> Tensor | None:
        """Boolean [tokens, before + tokens]. None where plain causal attention is the same."""
        key = (part.tokens, part.before, window)
        if key not in self._prefill_masks:
            self._prefill_masks[key] = self._prefill_mask(*key)
        return self._prefill_masks[key]

    def _prefill_mask(self, tokens: int, before: int, window: int | None) -> Tensor | None:
        import torch

        narrow = window is not None and before + tokens > window
        if not before and not narrow:
            return None
        allowed = torch.ones(tokens, before + tokens, dtype=torch.bool, device=self.lengths.device)
        allowed = allowed.tril(diagonal=before)
        return allowed.triu(diagonal=before - window + 1) if narrow and window is not None else allowed
