"""Lengths in tokens: the bounds that a row has to keep, and the quantiles for the report.

The token counter is an argument (`model_files.token_counter`), so that nothing here needs a model.

    measure(rows, system="Sort the message.", count=counter)    # [Length(prompt=12, completion=3, whole=34), ...]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from finetune_pipeline.config import Clean
from finetune_pipeline.records import Example

TokenCounter: TypeAlias = Callable[[Sequence[str]], list[int]]
MESSAGE_TOKENS = 5  # what ChatML adds to a message: <|im_start|>, role, line end, <|im_end|>, line end


@dataclass(frozen=True, slots=True)
class Length:
    """Tokens of the last prompt, of the completion, and of the whole row with system prompt and message marks;
    `rejected`: of the whole row with the rejected completion in place of its own, 0 without one."""

    prompt: int
    completion: int
    whole: int
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Quantiles:
    """p50 and p95 (the lower of two neighbors, numpy's method "lower") and the maximum."""

    p50: int = 0
    p95: int = 0
    max: int = 0


@dataclass(frozen=True, slots=True)
class LengthQuantiles:
    """Quantiles of prompt, completion and whole rows, in tokens."""

    prompt: Quantiles = Quantiles()
    completion: Quantiles = Quantiles()
    whole: Quantiles = Quantiles()


def measure(rows: Sequence[Example], system: str, count_tokens: TokenCounter) -> list[Length]:
    """One Length for each row. Every distinct text is counted once."""
    chats = [[*(m["content"] for m in row.chat(system)), row.completion] for row in rows]
    others = (text for row in rows for text in (row.prompt, row.rejected) if text is not None)
    distinct = list(dict.fromkeys(text for chat in chats for text in chat) | dict.fromkeys(others))
    tokens = dict(zip(distinct, count_tokens(distinct), strict=True))
    return [_length(row, chat, tokens) for row, chat in zip(rows, chats, strict=True)]


def _length(row: Example, chat: Sequence[str], tokens: Mapping[str, int]) -> Length:
    prompt, completion = tokens[row.prompt], tokens[row.completion]
    whole = sum(tokens[text] for text in chat) + MESSAGE_TOKENS * len(chat)
    rejected = 0 if row.rejected is None else whole - completion + tokens[row.rejected]
    return Length(prompt, completion, whole, rejected)


def out_of_bounds(length: Length, rules: Clean) -> tuple[str, str] | None:
    """(reason, detail) of the drop for a row outside the declared bounds; None for a row within them."""
    if min(length.prompt, length.completion) < rules.min_tokens:
        counts = f"prompt {length.prompt}, completion {length.completion} tokens"
        return "too-short", f"{counts}; at least {rules.min_tokens} are declared"
    if length.whole > rules.max_tokens:
        return "too-long", f"{length.whole} tokens with the system prompt; at most {rules.max_tokens} are allowed"
    return None


def length_quantiles(lengths: Sequence[Length]) -> LengthQuantiles:
    """The quantiles of these rows; zeros where there is none."""
    return LengthQuantiles(
        _quantiles([length.prompt for length in lengths]),
        _quantiles([length.completion for length in lengths]),
        _quantiles([length.whole for length in lengths]),
    )


def _quantiles(values: Sequence[int]) -> Quantiles:
    if not values:
        return Quantiles()
    ordered = sorted(values)
    return Quantiles(ordered[(len(ordered) - 1) // 2], ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])
