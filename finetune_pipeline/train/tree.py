"""A packed batch as a tree of segments: the shared prefix, the prompts behind it, one or more completions behind each.

    tree = PackedTree.of([1, 5], [sft_row, pair])
    tree.ids          # [1, 5,  6, 7, 9,  6, 11,  12, 3,  14]: prefix; prompt and completion of one row; a prompt, its
    tree.parents      # (-1,    0,        0,      2,      2)   two completions

A token attends to the tokens of its segment up to itself, and to all tokens of the segments above. So each token is
computed once, however many sequences it belongs to. The last token of a completion is not computed: nothing is
predicted from it. Rows that do not begin with the prefix (the general texts of replay.py) are trees of their own.

Sharing a prefix in training is described for GRPO in Prefix Grouper (arXiv:2506.05433). Values only: no tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from finetune_pipeline.train.tokenize import TokenizedExample

# What determines the output of the frozen layers for a segment, in any batch and epoch: whether it is below the shared
# prefix (whose ids never change in a training), the position of its first token, and the ids from there up to its end.
SegmentKey = tuple[bool, int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Segment:
    """`ids` of consecutive tokens, the first at position `start` of its sequence; `parent`: index of the segment above,
    -1 without one; `shared`: whether it is the prefix, or below it."""

    ids: Sequence[int]
    start: int
    parent: int
    shared: bool


@dataclass(frozen=True)
class PackedTree:
    """`segments`: parents before children. `wanted`: for every learned token, in the order of rows, completions and
    tokens, the index of the token that it is predicted from."""

    segments: tuple[Segment, ...]
    wanted: tuple[int, ...]

    @staticmethod
    def of(prefix: Sequence[int], rows: Iterable[TokenizedExample]) -> PackedTree:
        """The rows, those that begin with `prefix` below it. Every row needs at least one own prompt token."""
        return _Packer(list(prefix)).pack(rows)

    @functools.cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every segment."""
        return tuple(len(segment.ids) for segment in self.segments)

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """Index of the first token of every segment."""
        return (0, *accumulate(self.lengths))[:-1]

    @functools.cached_property
    def parents(self) -> tuple[int, ...]:
        return tuple(segment.parent for segment in self.segments)

    @functools.cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """For every segment, the indices of the segments above it, the topmost first."""
        paths: list[tuple[int, ...]] = []
        for segment in self.segments:
            paths.append((*paths[segment.parent], segment.parent) if segment.parent >= 0 else ())
        return tuple(paths)

    @property
    def ids(self) -> list[int]:
        return [token for segment in self.segments for token in segment.ids]

    @property
    def positions(self) -> list[int]:
        """Position of every token in its sequence."""
        return [segment.start + index for segment in self.segments for index in range(len(segment.ids))]

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max((segment.start + len(segment.ids) for segment in self.segments), default=0)

    @functools.cached_property
    def keys(self) -> tuple[SegmentKey, ...]:
        keys: list[SegmentKey] = []
        for segment in self.segments:
            above = keys[segment.parent][2] if segment.parent >= 0 and not self._is_prefix(segment.parent) else ()
            keys.append((segment.shared, segment.start, (*above, *segment.ids)))
        return tuple(keys)

    def without(self, cached: Collection[SegmentKey]) -> PackedTree:
        """The tree without the segments whose keys are in `cached` and that nothing else needs. Nothing is wanted."""
        kept: set[int] = set()
        for index, key in enumerate(self.keys):
            if key not in cached:
                kept |= {*self.paths[index], index}
        order = sorted(kept)
        new = {old: position for position, old in enumerate(order)} | {-1: -1}
        segments = [self.segments[old] for old in order]
        return PackedTree(tuple(Segment(s.ids, s.start, new[s.parent], s.shared) for s in segments), ())

    def _is_prefix(self, index: int) -> bool:
        return self.segments[index].shared and self.segments[index].parent < 0


def is_below(row: TokenizedExample, prefix: Sequence[int]) -> bool:
    """Whether a row begins with the shared prefix, and goes on behind it."""
    size = len(prefix)
    return size > 0 and len(row.prompt) > size and list(row.prompt[:size]) == list(prefix)


class _Packer:
    def __init__(self, prefix: list[int]) -> None:
        self._prefix = prefix
        self._segments: list[Segment] = []
        self._tokens = 0
        self._wanted: list[int] = []
        self._root = -1  # index of the prefix, once a row needs it

    def pack(self, rows: Iterable[TokenizedExample]) -> PackedTree:
        rows = list(rows)
        below = [is_below(row, self._prefix) for row in rows]
        if any(below):
            self._root, _ = self._add(self._prefix, 0, -1, True)
        for row, shared in zip(rows, below, strict=True):
            self._row(row, shared)
        return PackedTree(tuple(self._segments), tuple(self._wanted))

    def _row(self, row: TokenizedExample, shared: bool) -> None:
        parent, start = (self._root, len(self._prefix)) if shared else (-1, 0)
        prompt = row.prompt[start:]
        if len(row.completions) == 1:  # one segment: the attention of fewer segments takes less time
            (completion,) = row.completions
            learned = completion.learned
            _, first = self._add(prompt + completion.ids[: learned[-1] if learned else 0], start, parent, shared)
            self._wanted += [first + len(prompt) + index - 1 for index in learned]
            return
        above, first = self._add(prompt, start, parent, shared)
        last = first + len(prompt) - 1
        for completion in row.completions:
            learned = completion.learned
            own = completion.ids[: learned[-1] if learned else 0]
            if own:
                _, first = self._add(own, start + len(prompt), above, shared)
            self._wanted += [last if index == 0 else first + index - 1 for index in learned]

    def _add(self, ids: Sequence[int], start: int, parent: int, shared: bool) -> tuple[int, int]:
        """Append a segment; its index, and the index of its first token."""
        first = self._tokens
        self._segments.append(Segment(ids, start, parent, shared))
        self._tokens += len(ids)
        return len(self._segments) - 1, first
