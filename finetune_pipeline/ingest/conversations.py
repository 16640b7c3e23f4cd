"""Converts a row of a known layout to a conversation whose last message is the completion.

A row that is not an example raises InvalidRow with its reason. An empty completion is valid here: cleaning drops it
as "empty-completion". A completion that is absent (null, no such key, no assistant message) is not.

    conversation({"q": "where is it?", "a": "delivery"}, Layout("columns", "q", "a"), None)
    → Conversation((Message("user", "where is it?"), Message("assistant", "delivery")))
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_pipeline.ingest.layouts import Layout
from finetune_pipeline.ingest.preferences import from_preference, from_unpaired
from finetune_pipeline.ingest.rows import writable
from finetune_pipeline.ingest.turns import Conversation, InvalidRow, dumped, required, text_of, turns
from finetune_pipeline.records import Message


def conversation(row: Mapping[str, Any], layout: Layout, schema: Mapping[str, Any] | None) -> Conversation:
    """The row's messages. `schema` (of the declared answer) has the types of the columns of a JSON completion.

    Raises InvalidRow.
    """
    if layout.kind == "columns":
        parsed = Conversation(_from_columns(row, layout, schema))
    elif layout.kind == "alpaca":
        parsed = Conversation(_from_alpaca(row))
    elif layout.kind == "preference":
        parsed = from_preference(row)
    elif layout.kind == "unpaired":
        parsed = from_unpaired(row)
    else:
        key = "messages" if layout.kind == "messages" else "conversations"
        parsed = Conversation(turns(required(row, key)))
    _check_roles(parsed.messages)
    messages = tuple(Message(m.role, writable(m.content)) for m in parsed.messages)
    rejected = None if parsed.rejected is None else writable(parsed.rejected)
    return Conversation(messages, rejected, parsed.is_bad)


def _from_columns(row: Mapping[str, Any], layout: Layout, schema: Mapping[str, Any] | None) -> tuple[Message, ...]:
    prompt = required(row, layout.input, "no-prompt")
    if layout.outputs:
        completion = _json_completion(row, layout.outputs, schema)
    else:
        completion = text_of(required(row, layout.output, "no-completion"))
    return (Message("user", text_of(prompt)), Message("assistant", completion))


def _json_completion(row: Mapping[str, Any], columns: Sequence[str], schema: Mapping[str, Any] | None) -> str:
    """One JSON object of several columns, in their declared order; "" when all of them are empty."""
    missing = [name for name in columns if name not in row]
    if missing:
        raise InvalidRow("missing-column", f"no {', '.join(missing)}")
    if all(row[name] is None or row[name] == "" for name in columns):
        return ""
    fields = (schema or {}).get("properties", {})
    return dumped({name: _typed(row[name], fields.get(name)) for name in columns})


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
    instruction, context = text_of(required(row, "instruction", "no-prompt")), row.get("input")
    prompt = f"{instruction}\n\n{text_of(context)}" if context not in (None, "") else instruction
    system = row.get("system")
    head = (Message("system", text_of(system)),) if system else ()
    return (*head, Message("user", prompt), Message("assistant", text_of(required(row, "output", "no-completion"))))


def _check_roles(messages: tuple[Message, ...]) -> None:
    """InvalidRow unless the roles are what every chat template accepts: optionally system, then user and assistant in
    turns, assistant last."""
    roles = [m.role for m in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if "user" not in spoken or not any(m.content.strip() for m in messages if m.role == "user"):
        raise InvalidRow("no-prompt", "no user message with text")
    if spoken[-1] != "assistant":
        raise InvalidRow("no-completion", "the last message is not the assistant's")
    if spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise InvalidRow("wrong-layout", f"roles do not alternate: {', '.join(roles)}")
