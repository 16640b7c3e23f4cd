"""The layout of a packed sequence: the shared prefix once, then the rest of every row, then standalone rows.

    packed = PackedSequence(prefix=[1, 5], rows=[a, b], standalone=[text])
    packed.ids          # [1, 5,  6, 7, 9, 2,  6, 11, 12, 2,  40, 41, 42]
    packed.positions    # [0, 1,  2, 3, 4, 5,  2,  3,  4, 5,   0,  1,  2]
    packed.lengths      # [2, 4, 4, 3]: the segments prefix, a, b, text

Values only: no tensors, no model.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

from finetune_pipeline.train.tokenize import TokenizedExample

# Position of the first token, and the token ids: what determines the output of the frozen layers for a segment, in any
# batch and epoch. (Behind the prefix, whose ids never change in a training.)
SegmentKey = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class PackedSequence:
    """`prefix`: the ids that all `rows` begin with; `standalone`: rows that attend to themselves only, packed whole."""

    prefix: Sequence[int]
    rows: Sequence[TokenizedExample]
    standalone: Sequence[TokenizedExample]

    @functools.cached_property
    def segments(self) -> list[tuple[int, Sequence[int]]]:
        """(position of the first token, token ids) of every segment, in order."""
        start = len(self.prefix)
        prefix = [(0, self.prefix)] if self.rows else []
        rows = [(start, row.ids[start:]) for row in self.rows]
        return [*prefix, *rows, *((0, row.ids) for row in self.standalone)]

    @functools.cached_property
    def keys(self) -> list[SegmentKey]:
        return [(start, tuple(ids)) for start, ids in self.segments]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of every segment."""
        return [len(ids) for _, ids in self.segments]

    @property
    def sharing(self) -> int:
        """The number of segments that share the prefix, itself included: the first ones."""
        return len(self.segments) - len(self.standalone)

    @property
    def ids(self) -> list[int]:
        return [token for _, ids in self.segments for token in ids]

    @property
    def positions(self) -> list[int]:
        """Position ids; those of every row start after the prefix."""
        return [position for start, ids in self.segments for position in range(start, start + len(ids))]

    @property
    def ends(self) -> list[int]:
        """The index after the last token of every segment."""
        return list(accumulate(self.lengths))

    @property
    def supervised(self) -> list[int]:
        """Indices of the tokens whose output predicts a token of a completion in `rows`."""
        ends = self.ends[1:]  # the first segment is the prefix
        return [
            i for row, end in zip(self.rows, ends, strict=False) for i in range(end - 1 - len(row.completion), end - 1)
        ]

    @property
    def standalone_indices(self) -> list[int]:
        """Indices of the tokens whose output predicts a token of a standalone row: all but the last of each."""
        ends = self.ends[self.sharing :]
        return [i for row, end in zip(self.standalone, ends, strict=True) for i in range(end - len(row.ids), end - 1)]

    def without(self, cached: Collection[SegmentKey]) -> PackedSequence:
        """The sequence without the rows whose segments are in `cached`; the remaining rows keep their prefix."""
        keys = self.keys[len(self.keys) - len(self.rows) - len(self.standalone) :]  # without that of the prefix
        row_keys, standalone_keys = keys[: len(self.rows)], keys[len(self.rows) :]
        rows = [row for row, key in zip(self.rows, row_keys, strict=True) if key not in cached]
        standalone = [row for row, key in zip(self.standalone, standalone_keys, strict=True) if key not in cached]
        return PackedSequence(self.prefix, rows, standalone)
