"""The values of a row: a cell as text, a conversation as a list of messages or as a transcript.

turns([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}])
transcript("\\n\\nHuman: hi\\n\\nAssistant: hello")
→ (Message("user", "hi"), Message("assistant", "hello"))
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.records import Message

_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_ROLE_CHARS = 40
_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")  # as in the HH-RLHF data sets


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a row, and for a preference pair the rejected completion. `is_bad`: the completion itself is the
    rejected one (rows: unpaired)."""

    messages: tuple[Message, ...]
    rejected: str | None = None
    is_bad: bool = False


class InvalidRow(Exception):
    """A row that is not an example. `reason` is a slug: missing-column, wrong-layout, no-prompt, no-completion,
    invalid-json."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def text_of(value: Any) -> str:
    """A cell as text: strings unchanged, everything else as JSON (true, 3, {"intent": ...}).

    InvalidRow for NaN and Infinity, also inside lists and objects: JSON does not have them, and a model must not learn
    their names.
    """
    return value if isinstance(value, str) else dumped(value)


def dumped(value: Any) -> str:
    """A value as JSON. InvalidRow for NaN and Infinity."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError as error:
        raise InvalidRow("invalid-json", f"a value cannot be written as JSON: {error}") from error


def required(row: Mapping[str, Any], key: str, reason: str = "wrong-layout") -> Any:
    """The value of a key. InvalidRow where it is missing, or (with `reason`) null."""
    if key not in row:
        raise InvalidRow("missing-column", f"no {key}")
    if row[key] is None:
        raise InvalidRow(reason, f"{key} is null")
    return row[key]


def turns(value: Any) -> tuple[Message, ...]:
    """Messages of a list of turns, {role, content} or {from, value}, or of the same list as JSON text. InvalidRow."""
    if isinstance(value, str):  # a CSV or Parquet column that holds JSON
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            why = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise InvalidRow("wrong-layout", f"the conversation is text that cannot be read as JSON: {why}") from error
    if not isinstance(value, Sequence) or not all(isinstance(turn, Mapping) for turn in value):
        raise InvalidRow("wrong-layout", "the conversation is not a list of messages")
    return tuple(_turn(number, turn) for number, turn in enumerate(value, 1))


def conversation_in(value: Any) -> tuple[Message, ...] | None:
    """The messages of a value that is a list of turns, such a list as JSON text, or a transcript; None for any other
    value, which is a text. InvalidRow for a list that is no conversation."""
    if isinstance(value, list):
        return turns(value)
    if not isinstance(value, str):
        return None
    return turns(value) if _is_list_of_turns(value) else transcript(value)


def transcript(text: str) -> tuple[Message, ...] | None:
    """The messages of a text in the form of HH-RLHF ("\\n\\nHuman: …\\n\\nAssistant: …"), without outer space; None for
    a text that does not begin with "Human:"."""
    first, *parts = _SPEAKER.split(text)
    if first or parts[:1] != ["Human"]:
        return None
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message("user" if name == "Human" else "assistant", said.strip()) for name, said in pairs)


def _is_list_of_turns(text: str) -> bool:
    if not text.lstrip().startswith("[{"):
        return False
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(items, list) and all(isinstance(item, dict) and {"role", "from"} & item.keys() for item in items)


def _turn(number: int, turn: Mapping[str, Any]) -> Message:
    name, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    role = _ROLES.get(str(name).lower())
    if role is None:
        shown = repr(name)[:_ROLE_CHARS]
        raise InvalidRow("wrong-layout", f"message {number} has the role {shown}; known: system, user, assistant")
    if isinstance(content, list):  # OpenAI's content parts; only text is trained on
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        content = "\n".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise InvalidRow("no-completion" if role == "assistant" else "wrong-layout", f"message {number} has no text")
    return Message(role, content)  # type: ignore[arg-type]
