"""The KV cache of a batch: keys and values of the shared prefix, and of the own tokens of every sequence.

cache.reserve(slots=4, capacity=128, used=2)      # room for 4 sequences of 128 own tokens; keeps the first 2
cache.move(source=3, target=1, length=57)         # the sequence in slot 1 has finished
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class KVCache:
    """By layer: `prefix` keys and values [heads, tokens, size], and `own` [slots, heads, capacity, size]. Tensors of a
    layer are created when it first runs, so that layers may have different shapes."""

    def __init__(self) -> None:
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.slots = 0
        self.capacity = 0

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the shared prefix."""
        return int(next(iter(self.prefix.values()))[0].shape[1]) if self.prefix else 0

    def reserve(self, slots: int, capacity: int, used: int) -> None:
        """Make room for `slots` sequences of `capacity` own tokens; the first `used` slots keep their content."""
        if used == 0:
            if (slots, capacity) != (self.slots, self.capacity):
                self.own.clear()
            self.slots, self.capacity = slots, capacity
            return
        if slots <= self.slots and capacity <= self.capacity:
            return
        previous = self.capacity
        self.slots, self.capacity = slots, max(capacity, self.capacity)  # longer sequences may leave room for fewer
        for layer, pair in self.own.items():
            larger = tuple(t.new_zeros(self.slots, t.shape[1], self.capacity, t.shape[3]) for t in pair)
            for new, old in zip(larger, pair, strict=True):
                new[:used, :, :previous] = old[:used]
            self.own[layer] = larger[0], larger[1]

    def layer(self, index: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; created like `key` and `value` [1, heads, tokens, size] on first use. Zeros, not
        uninitialized memory: a masked token has weight 0, but 0 times NaN is NaN."""
        if index not in self.own:
            self.own[index] = (
                key.new_zeros(self.slots, key.shape[1], self.capacity, key.shape[3]),
                value.new_zeros(self.slots, value.shape[1], self.capacity, value.shape[3]),
            )
        return self.own[index]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of slot `source` to slot `target`."""
        import torch

        with torch.inference_mode():
            for tensor in (tensor for pair in self.own.values() for tensor in pair):
                tensor[target, :, :length] = tensor[source, :, :length]

    def copy_from(self, other: KVCache, slot: int, length: int) -> None:
        """Copy the first `length` tokens of slot 0 of another cache to `slot`."""
        import torch

        with torch.inference_mode():
            for layer, pair in other.own.items():
                for mine, theirs in zip(self.layer(layer, *pair), pair, strict=True):
                    mine[slot, :, :length] = theirs[0, :, :length]

    def keep_as_prefix(self, length: int) -> None:
        """Make the first `length` tokens of slot 0 the shared prefix, and remove all slots."""
        self.prefix = {
            layer: (k[0, :, :length].contiguous(), v[0, :, :length].contiguous()) for layer, (k, v) in self.own.items()
        }
        self.own, self.slots, self.capacity = {}, 0, 0
