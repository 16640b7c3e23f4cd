"""Rows as token ids: what the model sees, and which of it it learns from.

    Encoded("9f1c…", prompt=[1, 9690, …], answer=[13218, …, 2])      # 2: end of turn

Only the answer and the end-of-turn mark are supervised. The prompt is rendered and tokenized by itself, exactly as the
endpoint will do it, and what the chat template puts after the end-of-turn mark is left out: it is never generated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.models.base_model import render
from finetune_pipeline.records import Example


@dataclass(frozen=True, slots=True)
class Encoded:
    """One row: `prompt` and `answer` (with its end mark) as token ids; `joined`: the template renders the prompt alone
    exactly as it begins the whole conversation."""

    id: str
    prompt: list[int]
    answer: list[int]
    joined: bool

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


def encode(rows: Iterable[Example], tokenizer: Any, system: str, end_ids: frozenset[int]) -> list[Encoded]:
    """Render with the base model's chat template and tokenize; one Encoded a row, in order."""
    return [_row(row, tokenizer, system, end_ids) for row in rows]


def _row(row: Example, tokenizer: Any, system: str, end_ids: frozenset[int]) -> Encoded:
    chat = row.chat(system)
    prompt = render(tokenizer, chat)
    whole = render(tokenizer, [*chat, {"role": "assistant", "content": row.completion}], add_generation_prompt=False)
    joined = whole.startswith(prompt)
    rest = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    ends = [place for place, token in enumerate(rest) if token in end_ids]
    answer = rest[: ends[0] + 1] if ends else rest
    return Encoded(row.id, tokenizer(prompt, add_special_tokens=False)["input_ids"], answer, joined)
