"""Training examples: a conversation whose last message is the completion to learn.

One line of examples.jsonl:

    {"id": "9f1c20e4a7b35d68", "source": "tickets", "origin": "tickets.csv:12", "group": null,
     "messages": [{"role": "user", "content": "where is hv 48213??"},
                  {"role": "assistant", "content": "{\"intent\": \"delivery\", ...}"}]}

A row with a preference (DPO, IPO, KTO, ORPO) has another answer to the same prompt, which is worse, in "rejected":

    {"id": "…", …, "messages": [… {"role": "assistant", "content": "I am sorry to hear that."}], "rejected": "So what?"}

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
    (ingest/groups.py): rows of one group are assigned to the same split. `rejected` is another completion of the same
    prompt, which is worse than the row's own; None where there is no preference."""

    id: str
    messages: tuple[Message, ...]
    source: str
    origin: str
    group: str | None = None
    rejected: str | None = None

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
        """Hash of roles, contents and rejected completion as they are now; a review is valid for exactly this."""
        rejected = () if self.rejected is None else ("rejected", self.rejected)
        return content_id(*(part for m in self.messages for part in (m.role, m.content)), *rejected)

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
        """The row as a line of examples.jsonl; "rejected" is a key only where there is such a completion."""
        plain = asdict(self) | {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        if self.rejected is None:
            del plain["rejected"]
        return plain

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Example:
        """The inverse of `to_json`. KeyError names a missing key."""
        messages = tuple(Message(m["role"], m["content"]) for m in row["messages"])
        return Example(row["id"], messages, row["source"], row["origin"], row.get("group"), row.get("rejected"))
