"""Examples as token ids: the prompt, and the completion that is supervised.

    TokenizedExample("9f1c…", prompt=[1, 9690, …], completion=[13218, …, 2], prompt_matches=True)      # 2: end of turn

Only the completion and its end-of-turn token are supervised. The prompt is rendered and tokenized separately, exactly
as the endpoint does. What the chat template adds after the end-of-turn token is left out, since it is never generated.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.inference.chat_template import render
from finetune_pipeline.records import Example


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """`prompt` and `completion` (with its end-of-turn token) as ids. `prompt_matches`: whether the rendered
    conversation begins with the prompt as it is rendered alone, as in serving."""

    id: str
    prompt: list[int]
    completion: list[int]
    prompt_matches: bool

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.completion


def tokenize(
    examples: Iterable[Example], tokenizer: Any, system: str, end_ids: frozenset[int]
) -> list[TokenizedExample]:
    """Render with the base model's chat template and tokenize, in order. `system`: the task's system prompt; `end_ids`:
    the end-of-turn tokens."""
    return [_tokenize(example, tokenizer, system, end_ids) for example in examples]


def _tokenize(example: Example, tokenizer: Any, system: str, end_ids: frozenset[int]) -> TokenizedExample:
    chat = example.chat(system)
    prompt = render(tokenizer, chat)
    answered = [*chat, {"role": "assistant", "content": example.completion}]
    conversation = render(tokenizer, answered, add_generation_prompt=False)
    rest = tokenizer(conversation[len(prompt) :], add_special_tokens=False)["input_ids"]
    ends = [index for index, token in enumerate(rest) if token in end_ids]
    completion = rest[: ends[0] + 1] if ends else rest
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return TokenizedExample(example.id, prompt_ids, completion, conversation.startswith(prompt))
