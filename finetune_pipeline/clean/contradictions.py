"""Rows with the identical prompt that contradict each other. Each row comes with the text that identical prompts share.

contradictions([("hi", a), ("hi", b)], may_differ=False)
# a and b have different completions: a Drop for each, with the reason "contradiction"

contradictions([("hi", a), ("hi", b)], may_differ=True)
# only where a prefers "hello" to "go away", and b the reverse
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from finetune_pipeline.clean.normalize import identity
from finetune_pipeline.records import Drop, Example

STAGE = "clean"
Rows: TypeAlias = "Sequence[tuple[str, Example]]"


def same_prompt_groups(rows: Rows) -> list[list[Example]]:
    """The rows of each prompt that occurs more than once; without exact duplicates all their completions differ."""
    by_prompt: dict[str, list[Example]] = defaultdict(list)
    for prompt, row in rows:
        by_prompt[prompt].append(row)
    return [group for group in by_prompt.values() if len(group) > 1]


def contradictions(rows: Rows, may_differ: bool) -> list[Drop]:
    """Drops of all rows of a prompt with several completions; where it may have several, of those whose preferences
    reverse each other. `rows`: without exact duplicates."""
    drops = _reversed if may_differ else _differing
    return [drop for group in same_prompt_groups(rows) for drop in drops(group)]


def _differing(group: Sequence[Example]) -> Iterator[Drop]:
    for row in group:
        others = [other.id for other in group[:4] if other is not row][:3]
        more = f" and {len(group) - 1 - len(others)} more" if len(group) - 1 > len(others) else ""
        yield _drop(row, f"the same prompt has another completion in {', '.join(others)}{more}")


def _reversed(group: Iterable[Example]) -> Iterator[Drop]:
    pairs = ((row, row.rejected) for row in group if row.rejected is not None)
    preferences = {(identity(row.completion), identity(rejected)): row for row, rejected in pairs}
    for (chosen, rejected), row in preferences.items():
        other = preferences.get((rejected, chosen))
        if other is not None and other is not row:
            yield _drop(row, f"{other.id} ({other.origin}) prefers the rejected completion to this one")


def _drop(row: Example, detail: str) -> Drop:
    return Drop(row.id, row.origin, STAGE, "contradiction", detail)
