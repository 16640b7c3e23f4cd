"""Converts rows with a preference: a chosen and a rejected completion, or one completion that is good or bad.

    from_preference({"prompt": "hi", "chosen": "hello", "rejected": "go away"})
    → Conversation((Message("user", "hi"), Message("assistant", "hello")), "go away")

    from_preference({"chosen": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
                     "rejected": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "go away"}]})
    → the same: without a `prompt`, it is what the two conversations have in common

    from_unpaired({"prompt": "hi", "completion": "go away", "label": False})
    → Conversation((Message("user", "hi"), Message("assistant", "go away")), is_bad=True)

These are the formats of TRL (standard and conversational, with explicit and implicit prompt, paired and unpaired) and
of HH-RLHF. Good and bad rows of one prompt become pairs in `Partners`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.ingest.turns import Conversation, InvalidRow, conversation_in, required, text_of
from finetune_pipeline.records import Message

_LABELS = {"true": True, "1": True, "false": False, "0": False}


def from_preference(row: Mapping[str, Any]) -> Conversation:
    """Chosen and rejected are texts after a `prompt`, or whole conversations that differ in their last message.
    InvalidRow."""
    chosen, rejected = required(row, "chosen", "no-completion"), required(row, "rejected", "no-completion")
    head = _prompt(row.get("prompt"))
    chosen_turns, rejected_turns = conversation_in(chosen), conversation_in(rejected)
    if chosen_turns is not None and rejected_turns is not None:
        return _of_conversations(head, chosen_turns, rejected_turns)
    if isinstance(chosen, list) or isinstance(rejected, list):
        raise InvalidRow("wrong-layout", "one of chosen and rejected is a list of messages, and the other is not")
    return Conversation((*head, Message("assistant", text_of(chosen))), text_of(rejected))


def from_unpaired(row: Mapping[str, Any]) -> Conversation:
    """A completion of a `prompt`, with a `label` that says whether it is good. InvalidRow."""
    head, completion = _prompt(required(row, "prompt", "no-prompt")), required(row, "completion", "no-completion")
    label = _LABELS.get(str(required(row, "label")).strip().lower())
    if label is None:
        raise InvalidRow("wrong-layout", "label is neither true nor false")
    said = conversation_in(completion)
    messages = _joined(head, said) if said is not None else (*head, Message("assistant", text_of(completion)))
    return Conversation(messages, is_bad=not label)


def is_flag(value: Any) -> bool:
    """Whether a cell is true or false, also as text."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))


@dataclass(frozen=True, slots=True)
class Partners:
    """Which bad rows are the rejected completions of which good rows. Rows are named by their line: `rejected` is the
    completion for a good row, `merged_into` the good row that a bad one belongs to. A bad row in neither has no good
    one. The first bad row of a prompt belongs to its first good row, the second to the second, and so on."""

    rejected: Mapping[int, str]
    merged_into: Mapping[int, int]

    @staticmethod
    def of(rows: Iterable[tuple[int, Conversation]]) -> Partners:
        good: dict[tuple[Message, ...], list[int]] = defaultdict(list)
        bad: dict[tuple[Message, ...], list[tuple[int, str]]] = defaultdict(list)
        for line, parsed in rows:
            *prompt, completion = parsed.messages
            if parsed.is_bad:
                bad[tuple(prompt)].append((line, completion.content))
            else:
                good[tuple(prompt)].append(line)
        pairs = [pair for prompt in bad for pair in zip(good.get(prompt, ()), bad[prompt], strict=False)]
        return Partners({line: text for line, (_, text) in pairs}, {bad_line: line for line, (bad_line, _) in pairs})


def _prompt(value: Any) -> tuple[Message, ...]:
    """The messages of a `prompt`: none, a text, or a conversation. A transcript that ends with "Assistant:" ends before
    that."""
    if value is None:
        return ()
    found = conversation_in(value)
    if found is None:
        return (Message("user", text_of(value)),)
    opens_answer = isinstance(value, str) and found[-1:] == (Message("assistant", ""),)
    return found[:-1] if opens_answer else found


def _of_conversations(
    head: tuple[Message, ...], chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> Conversation:
    if chosen[:-1] != rejected[:-1] or not chosen or rejected[-1].role != "assistant":
        raise InvalidRow("wrong-layout", "chosen and rejected differ in more than the last message")
    return Conversation(_joined(head, chosen), rejected[-1].content)


def _joined(head: tuple[Message, ...], said: tuple[Message, ...]) -> tuple[Message, ...]:
    """The prompt and what follows it, where the conversation may begin with the prompt itself."""
    return said if said[: len(head)] == head else (*head, *said)
