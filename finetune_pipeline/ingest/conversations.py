"""Converts a row of a known layout to a conversation whose last message is the completion.

A row that is not an example raises InvalidRow with its reason. An empty completion is valid here: cleaning drops it
as "empty-completion". A completion that is absent (null, no such key, no assistant message) is not.

    conversation({"q": "where is it?", "a": "delivery"}, Layout("columns", "q", "a"), None)
    → Conversation((Message("user", "where is it?"), Message("assistant", "delivery")))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.ingest.layouts import Layout
from finetune_pipeline.ingest.rows import writable
from finetune_pipeline.records import Message

_ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant",
}  # fmt: skip
_ROLE_CHARS = 40


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of a row, and for a preference pair the rejected completion."""

    messages: tuple[Message, ...]
    rejected: str | None = None


class InvalidRow(Exception):
    """A row that is not an example. `reason` is a slug: missing-column, wrong-layout, no-prompt, no-completion,
    invalid-json."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def conversation(row: Mapping[str, Any], layout: Layout, schema: Mapping[str, Any] | None) -> Conversation:
    """The row's messages. `schema` (of the declared answer) has the types of the columns of a JSON completion.

    Raises InvalidRow.
    """
    if layout.kind == "columns":
        parsed = Conversation(_from_columns(row, layout, schema))
    elif layout.kind == "alpaca":
        parsed = Conversation(_from_alpaca(row))
    elif layout.kind == "preference":
        parsed = _from_preference(row)
    else:
        key = "messages" if layout.kind == "messages" else "conversations"
        parsed = Conversation(_turns(_required(row, key)))
    _check_roles(parsed.messages)
    messages = tuple(Message(m.role, writable(m.content)) for m in parsed.messages)
    return Conversation(messages, None if parsed.rejected is None else writable(parsed.rejected))


def text_of(value: Any) -> str:
    """A cell as text: strings unchanged, everything else as JSON (true, 3, {"intent": ...}).

    InvalidRow for NaN and Infinity, also inside lists and objects: JSON does not have them, and a model must not learn
    their names.
    """
    return value if isinstance(value, str) else _dumped(value)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError as error:
        raise InvalidRow("invalid-json", f"a value cannot be written as JSON: {error}") from error


def _from_columns(row: Mapping[str, Any], layout: Layout, schema: Mapping[str, Any] | None) -> tuple[Message, ...]:
    prompt = _required(row, layout.input, "no-prompt")
    if layout.outputs:
        completion = _json_completion(row, layout.outputs, schema)
    else:
        completion = text_of(_required(row, layout.output, "no-completion"))
    return (Message("user", text_of(prompt)), Message("assistant", completion))


def _json_completion(row: Mapping[str, Any], columns: Sequence[str], schema: Mapping[str, Any] | None) -> str:
    """One JSON object of several columns, in their declared order; "" when all of them are empty."""
    missing = [name for name in columns if name not in row]
    if missing:
        raise InvalidRow("missing-column", f"no {', '.join(missing)}")
    if all(row[name] is None or row[name] == "" for name in columns):
        return ""
    fields = (schema or {}).get("properties", {})
    return _dumped({name: _typed(row[name], fields.get(name)) for name in columns})


def _typed(value: Any, field: Any) -> Any:
    """A CSV's text converted to the schema's type; unchanged where it cannot be, so that it breaks the schema later."""
    if not isinstance(value, str) or not isinstance(field, Mapping):
        return value
    declared = field.get("type", ())
    types = {declared} if isinstance(declared, str) else set(declared)
    if value == "" and ("null" in types or None in field.get("enum", ())):
        return None
    if "string" in types or not types & {"integer", "number", "boolean", "array", "object"}:
        return value
    try:
        return json.loads(value.strip().lower() if "boolean" in types else value)
    except (ValueError, RecursionError):  # not JSON, a number of thousands of digits, nested too deeply
        return value


def _from_alpaca(row: Mapping[str, Any]) -> tuple[Message, ...]:
    instruction, context = text_of(_required(row, "instruction", "no-prompt")), row.get("input")
    prompt = f"{instruction}\n\n{text_of(context)}" if context not in (None, "") else instruction
    system = row.get("system")
    head = (Message("system", text_of(system)),) if system else ()
    return (*head, Message("user", prompt), Message("assistant", text_of(_required(row, "output", "no-completion"))))


def _from_preference(row: Mapping[str, Any]) -> Conversation:
    """Chosen and rejected are texts after a `prompt`, or whole conversations that differ in their last message."""
    chosen, rejected = _required(row, "chosen", "no-completion"), _required(row, "rejected", "no-completion")
    prompt = row.get("prompt")
    head = () if prompt is None else _turns(prompt) if isinstance(prompt, list) else (Message("user", text_of(prompt)),)
    if isinstance(chosen, list) and isinstance(rejected, list):
        chosen_turns, rejected_turns = _turns(chosen), _turns(rejected)
        same_start = chosen_turns[:-1] == rejected_turns[:-1]
        if not same_start or not chosen_turns or rejected_turns[-1].role != "assistant":
            raise InvalidRow("wrong-layout", "chosen and rejected differ in more than the last message")
        whole = chosen_turns if chosen_turns[: len(head)] == head else (*head, *chosen_turns)
        return Conversation(whole, rejected_turns[-1].content)
    return Conversation((*head, Message("assistant", text_of(chosen))), text_of(rejected))


def _turns(turns: Any) -> tuple[Message, ...]:
    """Messages of a list of turns, {role, content} or {from, value}."""
    if isinstance(turns, str):  # a CSV or Parquet column that holds JSON
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError) as error:
            why = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise InvalidRow("wrong-layout", f"the conversation is text that cannot be read as JSON: {why}") from error
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        raise InvalidRow("wrong-layout", "the conversation is not a list of messages")
    return tuple(_turn(number, turn) for number, turn in enumerate(turns, 1))


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


def _required(row: Mapping[str, Any], key: str, reason: str = "wrong-layout") -> Any:
    """The value of a key. InvalidRow where it is missing, or (with `reason`) null."""
    if key not in row:
        raise InvalidRow("missing-column", f"no {key}")
    if row[key] is None:
        raise InvalidRow(reason, f"{key} is null")
    return row[key]


def _check_roles(messages: tuple[Message, ...]) -> None:
    """InvalidRow unless the roles are what every chat template accepts: optionally system, then user and assistant in
    turns, assistant last."""
    roles = [m.role for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if "user" not in turns or not any(m.content.strip() for m in messages if m.role == "user"):
        raise InvalidRow("no-prompt", "no user message with text")
    if turns[-1] != "assistant":
        raise InvalidRow("no-completion", "the last message is not the assistant's")
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise InvalidRow("wrong-layout", f"roles do not alternate: {', '.join(roles)}")
