"""Lengths in tokens: rows that are too short or too long for the declared bounds, and the figures for people.

The counter is an argument (`model_files.token_counter`), so that nothing here needs a model. Pure.

    measure(rows, system="Sort the message.", count=len_of_each)    # [Length(question=12, answer=3, whole=34), ...]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from finetune_pipeline.config import Clean
from finetune_pipeline.records import Example, Json

Counter: TypeAlias = Callable[[Sequence[str]], list[int]]
MESSAGE_TOKENS = 5  # what ChatML puts around a message: <|im_start|>, role, line end, <|im_end|>, line end


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of the last question, of the answer, and of the whole row with system prompt and message marks."""

    prompt: int
    completion: int
    whole: int


def measure(rows: Sequence[Example], system: str, count: Counter) -> list[Length]:
    """One Length a row. Every distinct text is counted once."""
    chats = [[*(m["content"] for m in row.chat(system)), row.completion] for row in rows]
    distinct = list(dict.fromkeys(text for chat in chats for text in chat) | dict.fromkeys(row.prompt for row in rows))
    tokens = dict(zip(distinct, count(distinct), strict=True))
    return [
        Length(
            tokens[row.prompt],
            tokens[row.completion],
            sum(tokens[text] for text in chat) + MESSAGE_TOKENS * len(chat),
        )
        for row, chat in zip(rows, chats, strict=True)
    ]


def complaint(length: Length, rules: Clean) -> tuple[str, str] | None:
    """(reason, detail) of the drop, or None for a row of fitting length."""
    if min(length.prompt, length.completion) < rules.min_tokens:
        detail = (
            f"question {length.prompt}, answer {length.completion} tokens; at least {rules.min_tokens} are declared"
        )
        return "too-short", detail
    if length.whole > rules.max_tokens:
        return "too-long", f"{length.whole} tokens with the system prompt; at most {rules.max_tokens} are declared"
    return None


def figures(lengths: Sequence[Length]) -> dict[str, Json]:
    """p50, p95 and maximum of question, answer and whole rows, in tokens."""
    return {name: quantiles([getattr(one, name) for one in lengths]) for name in ("prompt", "completion", "whole")}


def quantiles(values: Sequence[int]) -> dict[str, Json]:
    """p50 and p95 (nearest rank) and the largest."""
    if not values:
        return {"p50": 0, "p95": 0, "max": 0}
    ordered = sorted(values)
    return {"p50": ordered[(len(ordered) - 1) // 2], "p95": ordered[int(0.95 * (len(ordered) - 1))], "max": ordered[-1]}
