"""Examples as token ids: the prompt, and one or two completions that follow it.

    TokenizedExample("9f1c…", prompt=[1, 9690, …], completions=(Completion([13218, …, 2]),))      # 2: end of turn

Only what the assistant says is learned, with its end-of-turn token. The prompt is rendered and tokenized separately,
exactly as the endpoint does. What the chat template adds after the last end-of-turn token is left out, since it is
never generated.

In a conversation of several turns, every assistant turn is learned: the completion is all that follows the first
prompt, and `learned` holds the spans of the assistant's tokens in it. Templates that render an earlier turn differently
once it is history (Qwen3 removes its reasoning) make this impossible in one sequence; then every turn is a row by
itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from finetune_pipeline.inference.chat_template import render
from finetune_pipeline.records import Example


@dataclass(frozen=True, slots=True)
class Completion:
    """Token ids that follow a prompt. `spans`: pairs (start, stop) of the learned ids; None: all of them."""

    ids: list[int]
    spans: tuple[tuple[int, int], ...] | None = None

    @property
    def learned(self) -> list[int]:
        """Indices of the learned ids."""
        spans = ((0, len(self.ids)),) if self.spans is None else self.spans
        return [index for start, stop in spans for index in range(start, stop)]

    @property
    def targets(self) -> list[int]:
        """The learned ids."""
        return [self.ids[index] for index in self.learned]


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """`completions`: the chosen one, and for preference training the rejected one. `prompt_matches`: whether the
    rendered conversation, with each of them, begins with the prompt as it is rendered alone, as in serving."""

    id: str
    prompt: list[int]
    completions: tuple[Completion, ...]
    prompt_matches: bool = True

    @property
    def tokens(self) -> int:
        """Tokens of the longest sequence: the prompt with its longest completion."""
        return len(self.prompt) + max(len(completion.ids) for completion in self.completions)

    @property
    def learned(self) -> int:
        """Learned tokens of all completions."""
        return sum(len(completion.learned) for completion in self.completions)


def tokenize(
    examples: Iterable[Example], tokenizer: Any, system: str, end_ids: frozenset[int], turns: str = "all"
) -> list[TokenizedExample]:
    """Render with the base model's chat template and tokenize, in order. `system`: the task's system prompt; `end_ids`:
    the end-of-turn tokens; `turns`: "all" assistant turns of a conversation are learned, or only its "last"."""
    return [row for example in examples for row in _rows(example, tokenizer, system, end_ids, turns)]


def tokenize_pairs(
    examples: Iterable[Example], tokenizer: Any, system: str, end_ids: frozenset[int]
) -> list[TokenizedExample]:
    """The same for preference training: the last turn alone, chosen and (where there is one) rejected."""
    rows = []
    for example in examples:
        chosen = _turn(example, tokenizer, system, end_ids)
        completions, matches = chosen.completions, chosen.prompt_matches
        if example.rejected is not None:
            rejected = _turn(example.with_completion(example.rejected), tokenizer, system, end_ids)
            completions, matches = completions + rejected.completions, matches and rejected.prompt_matches
        rows.append(TokenizedExample(example.id, chosen.prompt, completions, matches))
    return rows


def _rows(
    example: Example, tokenizer: Any, system: str, end_ids: frozenset[int], turns: str
) -> Iterator[TokenizedExample]:
    earlier = [index for index, message in enumerate(example.messages[:-1]) if message.role == "assistant"]
    if turns == "last" or not earlier:
        yield _turn(example, tokenizer, system, end_ids)
        return
    conversation = _conversation(example, tokenizer, system, end_ids, earlier)
    if conversation is not None:
        yield conversation
        return
    for index in earlier:
        yield _turn(_up_to(example, index), tokenizer, system, end_ids)
    yield _turn(example, tokenizer, system, end_ids)


def _turn(example: Example, tokenizer: Any, system: str, end_ids: frozenset[int]) -> TokenizedExample:
    """The last turn of a conversation, everything before it as the prompt. Where the conversation does not begin with
    the prompt (the audit then stops the training), the completion is all that follows what both begin with."""
    prompt = render(tokenizer, example.chat(system))
    conversation = _rendered(example, tokenizer, system)
    matches = conversation.startswith(prompt)
    start = len(prompt) if matches else next(n for n in range(len(prompt)) if conversation[n : n + 1] != prompt[n])
    completion = _to_first_end(_ids(tokenizer, conversation[start:]), end_ids)
    return TokenizedExample(example.id, _ids(tokenizer, prompt), (Completion(completion),), matches)


def _conversation(
    example: Example, tokenizer: Any, system: str, end_ids: frozenset[int], earlier: Sequence[int]
) -> TokenizedExample | None:
    """All assistant turns in one sequence; None when a later prompt does not begin with what was learned before it."""
    turns = [*(_up_to(example, index) for index in earlier), example]
    prompts = [render(tokenizer, turn.chat(system)) for turn in turns]
    texts = [*prompts, _rendered(example, tokenizer, system)]
    alone = [_rendered(turn, tokenizer, system) for turn in turns]  # each turn as the last one
    if not all(b.startswith(a) for a, b in pairwise(texts)) or not all(texts[-1].startswith(text) for text in alone):
        return None
    first, ids = _ids(tokenizer, prompts[0]), list[int]()
    spans: list[tuple[int, int]] = []
    for turn, (before, later) in enumerate(pairwise(texts)):
        piece = _ids(tokenizer, later[len(before) :])
        answer = _to_first_end(piece, end_ids)
        spans.append((len(ids), len(ids) + len(answer)))
        ids += piece if turn + 1 < len(turns) else answer
        if turn + 1 < len(turns) and first + ids != _ids(tokenizer, later):
            return None  # the tokens at the seam differ from those that the endpoint would read
    return TokenizedExample(example.id, first, (Completion(ids, tuple(spans)),))


def _up_to(example: Example, index: int) -> Example:
    """The conversation up to a message of the assistant, as an example of its own."""
    return replace(example, messages=example.messages[: index + 1])


def _rendered(example: Example, tokenizer: Any, system: str) -> str:
    """The whole conversation."""
    answered = [*example.chat(system), {"role": "assistant", "content": example.completion}]
    return render(tokenizer, answered, add_generation_prompt=False)


def _to_first_end(ids: list[int], end_ids: frozenset[int]) -> list[int]:
    """The ids up to the first end-of-turn token, included; all without one."""
    end = next((index for index, token in enumerate(ids) if token in end_ids), len(ids) - 1)
    return ids[: end + 1]


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
