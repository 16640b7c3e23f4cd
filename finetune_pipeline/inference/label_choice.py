"""Constrained decoding for label tasks: a prompted model can only give one of the declared labels.

    choice = LabelChoice({"refund": [812, 14], "refund_fee": [812, 14, 77], "late": [9]}, eos_ids={2})
    choice.allowed([])            # {812, 9}: the tokens that some label begins with
    choice.allowed([812, 14])     # {2, 77}: the label is complete, or goes on
    choice.label([9])             # "late": no other label begins so, and the rest need not be generated

An untuned model that is asked for a label talks on, and is then counted as wrong for it. Its knowledge is better seen
where it can only choose, as an engineer with a decoder at hand would let it; and a choice takes a few tokens instead of
an answer's length. It is greedy: at each token the most probable of those allowed. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence


class LabelChoice:
    """`labels`: the token ids of each label, as an answer gives them; `eos_ids`: the tokens that end an answer."""

    def __init__(self, labels: Mapping[str, Sequence[int]], eos_ids: Collection[int]) -> None:
        self._eos = frozenset(eos_ids)
        self._next: defaultdict[tuple[int, ...], set[int]] = defaultdict(set)
        self._left: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
        for label, ids in labels.items():
            for length in range(len(ids) + 1):
                start = tuple(ids[:length])
                self._left[start].append(label)
                self._next[start] |= {ids[length]} if length < len(ids) else self._eos
        self._whole = {tuple(ids): label for label, ids in labels.items()}

    def allowed(self, ids: Sequence[int]) -> Collection[int]:
        """The tokens that may come after `ids`, the answer so far."""
        return self._next[tuple(ids)]

    def stop(self, ids: Sequence[int]) -> bool:
        """Whether the answer is decided: one label is left."""
        return len(self._left.get(tuple(ids), ())) == 1

    def label(self, ids: Sequence[int]) -> str:
        """The label that `ids` (an end mark may follow) stand for."""
        bare = tuple(ids[:-1]) if ids and ids[-1] in self._eos else tuple(ids)
        return self._whole[bare] if ids and ids[-1] in self._eos else self._left[bare][0]
