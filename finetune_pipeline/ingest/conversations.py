"""One row, in a known layout, becomes a conversation whose last message is the answer; or a refusal with its reason.

Pure: values in, values out. An empty answer is no refusal here: it goes on to the cleaning, which drops it under that
name; an answer that is absent altogether (null, no such key, no assistant's message) is.

    conversation({"q": "where is it?", "a": "delivery"}, Layout("columns", "q", "a"), None)
    → Parsed((Message("user", "where is it?"), Message("assistant", "delivery")))
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
class Parsed:
    """The conversation, and for a preference pair the answer that was not preferred."""

    messages: tuple[Message, ...]
    rejected: str | None = None


class RowRefused(Exception):
    """A row that is no example.

    `reason` is a slug (missing-column, wrong-layout, no-prompt, no-completion, invalid-json).
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


def conversation(row: Mapping[str, Any], layout: Layout, schema: Mapping[str, Any] | None) -> Parsed:
    """The row's messages. `schema` (of the declared answer) gives the columns of a JSON answer their types.

    Raises RowRefused.
    """
    if layout.kind == "columns":
        parsed = Parsed(_from_columns(row, layout, schema))
    elif layout.kind == "alpaca":
        parsed = Parsed(_from_alpaca(row))
    elif layout.kind == "preference":
        parsed = _from_preference(row)
    else:
        key = "messages" if layout.kind == "messages" else "conversations"
        parsed = Parsed(_turns(_present(row, key)))
    _check(parsed.messages)
    messages = tuple(Message(m.role, writable(m.content)) for m in parsed.messages)
    return Parsed(messages, None if parsed.rejected is None else writable(parsed.rejected))


def text_of(value: Any) -> str:
    """A cell as text: strings as they are, all else as JSON (true, 3, {"intent": ...}). RowRefused for NaN and
    Infinity, also within lists and objects: JSON does not have them, and their names must not be learned."""
    return value if isinstance(value, str) else _dumped(value)


def _dumped(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError as error:
        raise RowRefused("invalid-json", f"a value cannot be written as JSON: {error}") from error


def _from_columns(row: Mapping[str, Any], layout: Layout, schema: Mapping[str, Any] | None) -> tuple[Message, ...]:
    question = _present(row, layout.input, "no-prompt")
    if layout.outputs:
        answer = _json_answer(row, layout.outputs, schema)
    else:
        answer = text_of(_present(row, layout.output, "no-completion"))
    return (Message("user", text_of(question)), Message("assistant", answer))


def _json_answer(row: Mapping[str, Any], columns: Sequence[str], schema: Mapping[str, Any] | None) -> str:
    """One JSON object of several columns, in their declared order; "" when all of them are empty."""
    missing = [name for name in columns if name not in row]
    if missing:
        raise RowRefused("missing-column", f"no {', '.join(missing)}")
    if all(row[name] is None or row[name] == "" for name in columns):
        return ""
    fields = (schema or {}).get("properties", {})
    return _dumped({name: _typed(row[name], fields.get(name)) for name in columns})


def _typed(value: Any, field: Any) -> Any:
    """A CSV's text as the schema's type where it can be one; what cannot is left, and fails the schema later on."""
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
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, nested too deeply
        return value


def _from_alpaca(row: Mapping[str, Any]) -> tuple[Message, ...]:
    instruction, context = text_of(_present(row, "instruction", "no-prompt")), row.get("input")
    question = f"{instruction}\n\n{text_of(context)}" if context not in (None, "") else instruction
    system = row.get("system")
    head = (Message("system", text_of(system)),) if system else ()
    return (*head, Message("user", question), Message("assistant", text_of(_present(row, "output", "no-completion"))))


def _from_preference(row: Mapping[str, Any]) -> Parsed:
    """Chosen and rejected as texts after a `prompt`, or as whole conversations that differ in their last message."""
    chosen, rejected = _present(row, "chosen", "no-completion"), _present(row, "rejected", "no-completion")
    prompt = row.get("prompt")
    head = () if prompt is None else _turns(prompt) if isinstance(prompt, list) else (Message("user", text_of(prompt)),)
    if isinstance(chosen, list) and isinstance(rejected, list):
        good, bad = _turns(chosen), _turns(rejected)
        if good[:-1] != bad[:-1] or not good or bad[-1].role != "assistant":
            raise RowRefused("wrong-layout", "chosen and rejected differ in more than the last answer")
        whole = good if good[: len(head)] == head else (*head, *good)
        return Parsed(whole, bad[-1].content)
    return Parsed((*head, Message("assistant", text_of(chosen))), text_of(rejected))


def _turns(turns: Any) -> tuple[Message, ...]:
    """Messages of a list of turns, {role, content} or {from, value}."""
    if isinstance(turns, str):  # a CSV or Parquet column that holds JSON
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError) as error:
            why = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
            raise RowRefused("wrong-layout", f"the conversation is text that cannot be read as JSON: {why}") from error
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        raise RowRefused("wrong-layout", "the conversation is no list of messages")
    return tuple(_turn(number, turn) for number, turn in enumerate(turns, 1))


def _turn(number: int, turn: Mapping[str, Any]) -> Message:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    known = _ROLES.get(str(role).lower())
    if known is None:
        said = repr(role)[:_ROLE_CHARS]
        raise RowRefused("wrong-layout", f"message {number} has the role {said}; known: system, user, assistant")
    if isinstance(content, list):  # OpenAI's content parts; only text can be learned here
        texts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        content = "\n".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise RowRefused("no-completion" if known == "assistant" else "wrong-layout", f"message {number} has no text")
    return Message(known, content)  # type: ignore[arg-type]


def _present(row: Mapping[str, Any], key: str, reason: str = "wrong-layout") -> Any:
    if key not in row:
        raise RowRefused("missing-column", f"no {key}")
    if row[key] is None:
        raise RowRefused(reason, f"{key} is null")
    return row[key]


def _check(messages: tuple[Message, ...]) -> None:
    """System first if at all, then user and assistant in turns, the assistant last: what every chat template takes."""
    roles = [m.role for m in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if "user" not in turns or not any(m.content.strip() for m in messages if m.role == "user"):
        raise RowRefused("no-prompt", "nothing that a user said")
    if turns[-1] != "assistant":
        raise RowRefused("no-completion", "the last message is not the assistant's")
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise RowRefused("wrong-layout", f"roles do not take turns: {', '.join(roles)}")
