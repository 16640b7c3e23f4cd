"""Constrained decoding for label tasks: a prompted model can only generate one of the declared labels.

    choice = LabelChoice({"refund": [812, 14], "refund_fee": [812, 14, 77], "late": [9]}, eos_ids={2})
    choice.allowed([])            # {812, 9}: the tokens that some label begins with
    choice.allowed([812, 14])     # {2, 77}: the label is complete, or goes on
    choice.label([9])             # "late": the only label with this beginning, so the rest is not generated

An untuned model adds text to the label, and would be scored as wrong. Constrained decoding is the fair comparison,
since an engineer with a decoder would use it; and it takes a few tokens instead of a whole answer. It is greedy: at
each step, the most probable of the allowed tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence


class LabelChoice:
    """`labels`: the token ids of each label; `eos_ids`: the end-of-turn tokens."""

    def __init__(self, labels: Mapping[str, Sequence[int]], eos_ids: Collection[int]) -> None:
        self._eos = frozenset(eos_ids)
        self._next: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self._candidates: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for label, ids in labels.items():
            for length in range(len(ids) + 1):
                start = tuple(ids[:length])
                self._candidates[start].append(label)
                self._next[start] |= {ids[length]} if length < len(ids) else self._eos
        self._complete = {tuple(ids): label for label, ids in labels.items()}

    def allowed(self, ids: Sequence[int]) -> Collection[int]:
        """The tokens that may come after `ids`, the answer so far."""
        return self._next[tuple(ids)]

    def stop(self, ids: Sequence[int]) -> bool:
        """Whether only one label begins with `ids`."""
        return len(self._candidates.get(tuple(ids), ())) == 1

    def label(self, ids: Sequence[int]) -> str:
        """The label of an answer: `ids` are its tokens, or its beginning, with or without an end-of-turn token."""
        text = tuple(ids[:-1]) if ids and ids[-1] in self._eos else tuple(ids)
        return self._complete[text] if ids and ids[-1] in self._eos else self._candidates[text][0]
