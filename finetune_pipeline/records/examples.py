"""Training examples: a conversation whose last message is the completion to learn, and pairs for DPO.

One line of examples.jsonl:

    {"id": "9f1c20e4a7b35d68", "source": "tickets", "origin": "tickets.csv:12", "group": null,
     "messages": [{"role": "user", "content": "where is hv 48213??"},
                  {"role": "assistant", "content": "{\"intent\": \"delivery\", ...}"}]}

The system prompt of the task is part of the declaration and not stored in the rows; `Example.chat` adds it, unless the
row has a system message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from finetune_pipeline.records.hashing import content_id


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as in the OpenAI chat format."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row. `id` is the hash of content and source as they were read, before cleaning, and never changes;
    `origin` is where a person finds the row ("tickets.csv:12"); `group` is a hash of the source's group column
    (ingest/groups.py): rows of one group are assigned to the same split."""

    id: str
    messages: tuple[Message, ...]
    source: str
    origin: str
    group: str | None = None

    @property
    def prompt(self) -> str:
        """The content of the last user message; "" without one."""
        return next((m.content for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def completion(self) -> str:
        """The content of the last message if it is the assistant's; else ""."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else ""

    @property
    def content_hash(self) -> str:
        """Hash of roles and contents as they are now; a review is valid for exactly this content."""
        return content_id(*(part for m in self.messages for part in (m.role, m.content)))

    def chat(self, system: str) -> list[dict[str, str]]:
        """All messages but the completion, as `apply_chat_template` takes them, preceded by `system` unless the row
        has a system message."""
        prompt = self.prompt_messages
        has_system = bool(prompt) and prompt[0].role == "system"
        head = [{"role": "system", "content": system}] if system and not has_system else []
        return head + [{"role": m.role, "content": m.content} for m in prompt]

    @property
    def prompt_messages(self) -> tuple[Message, ...]:
        """All messages but the completion."""
        return self.messages[:-1] if self.ends_with_completion else self.messages

    @property
    def ends_with_completion(self) -> bool:
        """Whether the last message is the assistant's."""
        return bool(self.messages) and self.messages[-1].role == "assistant"

    def with_completion(self, completion: str) -> Example:
        """A copy whose last message is this completion."""
        return replace(self, messages=(*self.messages[:-1], Message("assistant", completion)))

    def to_json(self) -> dict[str, Any]:
        """The row as a line of examples.jsonl."""
        return asdict(self) | {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Example:
        """The inverse of `to_json`. KeyError names a missing key."""
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        return Example(row["id"], messages, row["source"], row["origin"], row.get("group"))


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt with a chosen and a rejected completion, as in DPO."""

    id: str
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str
    origin: str
    group: str | None = None

    def as_example(self) -> Example:
        """The chosen completion as an example for supervised training."""
        messages = (*self.messages, Message("assistant", self.chosen))
        return Example(self.id, messages, self.source, self.origin, self.group)
