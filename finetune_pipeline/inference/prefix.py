"""The token ids that several prompts begin with, so that they are computed once.

common_prefix([[1, 2, 3, 9], [1, 2, 4]])     # [1, 2]
"""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The longest common prefix that leaves every prompt at least one own id; [] for fewer than two prompts."""
    if len(prompts) < 2:
        return []
    first, last = min(prompts), max(prompts)  # lexicographically: all prompts between them share what these two share
    limit = min(map(len, prompts)) - 1
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), limit)
    return first[: min(shared, limit)]
