"""The token ids that several prompts begin with, which are computed once for all of them.

common_prefix([[1, 2, 3, 9], [1, 2, 4]])     # [1, 2]
"""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The ids that all prompts share from their start, leaving each at least one id of its own.

    [] for fewer than two prompts: there is nothing to share.
    """
    if len(prompts) < 2:
        return []
    first, last = min(prompts), max(prompts)  # in the order of their ids: what these two share, all share
    limit = min(map(len, prompts)) - 1
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), limit)
    return first[: min(shared, limit)]
