"""The table that Great Expectations checks: one row for each example, a column for each thing that a rule reads.

    id                origin          source   prompt            completion             prompt_chars  roles  ...
    9f1c20e4a7b35d68  tickets.csv:12  tickets  where is hv 4…    {"intent": "deliv…               41  ua

For teams (`quality.expectations`): id, origin, source; prompt (the last message of the user) and completion, null where
blank; prompt_chars and completion_chars, their lengths; rejected, null where there is none; roles, `sua` for system,
user, assistant; and for JSON answers `field.<name>` for each property of the schema (null where it is missing; lists
and objects as JSON).

For the rules: turns (all that user and assistant say, and the rejected completion), asked (all that the user says),
longest_answer (of the assistant's messages and the rejected completion), free_texts (what of these messages is
no declared value: the text; the strings of JSON that are in no enum; nothing of a label), conversation (a hash of all
that makes two rows the same prompt). Texts of all rows are in memory at once, as in cleaning; none of them goes into a
stored result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from finetune_pipeline.clean.duplicates import several_completions
from finetune_pipeline.config import AnswerFormat, Task
from finetune_pipeline.records import Example, content_id

if TYPE_CHECKING:
    from pandas import DataFrame

FOR_TEAMS = ("id", "origin", "source", "prompt", "completion", "prompt_chars", "completion_chars", "rejected", "roles")
FOR_RULES = ("turns", "asked", "longest_answer", "free_texts", "conversation")
FIELD = "field."
_REMEMBERED = 20_000  # completions: most tasks have few different ones


def columns_for_teams(task: Task) -> tuple[str, ...]:
    """The names that an expectation of the declaration may use."""
    return (*FOR_TEAMS, *(FIELD + name for name in _fields(task.answer)))


def columns(rows: Sequence[Example], task: Task, names: Sequence[str]) -> dict[str, list[Any]]:
    """The values of these columns; None where there is none."""
    cells = _cells(task)
    return {name: [cells[name](row) for row in rows] for name in names}


def frame_of(rows: Sequence[Example], task: Task) -> DataFrame:
    """All columns. No rows give a table without rows, with every column."""
    import pandas as pd

    names = (*columns_for_teams(task), *FOR_RULES)
    frame = pd.DataFrame({name: _typed(name, values) for name, values in columns(rows, task, names).items()})
    return frame[list(names)]


def _typed(name: str, values: list[Any]) -> Any:
    import pandas as pd

    if name.endswith("_chars"):
        return pd.array(values, dtype="Int64")
    return pd.Series(values, dtype=object if name in FOR_RULES or name.startswith(FIELD) else "str")


def _cells(task: Task) -> Mapping[str, Callable[[Example], Any]]:
    """How each column is read from an example."""
    by_completion = several_completions(task.clean, task.answer)
    known = lru_cache(_REMEMBERED)(lambda completion: _value(completion, task.answer))
    enums = frozenset(_enums(task.answer.json_schema))
    free = lru_cache(_REMEMBERED)(lambda completion: _free_texts(completion, task.answer, known(completion), enums))
    cells: dict[str, Callable[[Example], Any]] = {
        "id": lambda row: row.id,
        "origin": lambda row: row.origin,
        "source": lambda row: row.source,
        "prompt": lambda row: _text(row.prompt),
        "completion": lambda row: _text(row.completion),
        "prompt_chars": lambda row: len(row.prompt) or None,
        "completion_chars": lambda row: len(row.completion) or None,
        "rejected": lambda row: row.rejected,
        "roles": lambda row: "".join(m.role[0] for m in row.messages),
        "turns": lambda row: (*(m.content for m in row.messages if m.role != "system"), *_rejected(row)),
        "asked": lambda row: "\n".join(m.content for m in row.messages if m.role == "user"),
        "longest_answer": lambda row: max((*_said(row), *_rejected(row)), key=len, default=""),
        "free_texts": lambda row: tuple(text for said in _said(row) for text in free(said)),
        "conversation": lambda row: _conversation(row, by_completion),
    }
    return cells | {FIELD + name: _field(name, known) for name in _fields(task.answer)}


def _said(row: Example) -> list[str]:
    """All that the assistant says, which is what the model learns."""
    return [m.content for m in row.messages if m.role == "assistant"]


def _rejected(row: Example) -> tuple[str, ...]:
    return () if row.rejected is None else (row.rejected,)


def _text(text: str) -> str | None:
    return text if text.strip() else None


def _conversation(row: Example, with_completion: bool) -> str:
    messages = row.messages if with_completion else row.prompt_messages
    return content_id(*(part for message in messages for part in (message.role, message.content)))


def _fields(answer: AnswerFormat) -> Sequence[str]:
    properties = (answer.json_schema or {}).get("properties", {})
    return tuple(properties) if answer.format == "json" and isinstance(properties, Mapping) else ()


def _field(name: str, known: Callable[[str], Any]) -> Callable[[Example], Any]:
    def cell(row: Example) -> Any:
        value = known(row.completion)
        found = value.get(name) if isinstance(value, dict) else None
        return json.dumps(found, ensure_ascii=False) if isinstance(found, dict | list) else found

    return cell


def _value(completion: str, answer: AnswerFormat) -> Any:
    if answer.format != "json":
        return None
    try:
        return json.loads(completion)
    except (ValueError, RecursionError):
        return None  # the rule completion_valid reports it


def _free_texts(completion: str, answer: AnswerFormat, value: Any, enums: frozenset[str]) -> tuple[str, ...]:
    if answer.format == "json":
        return tuple(text for text in _strings(value) if text not in enums)
    return (completion,) if answer.format == "text" else ()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _enums(schema: Any) -> Iterator[str]:
    """Every string that the schema declares as a value, wherever that is."""
    if isinstance(schema, Mapping):
        yield from _strings([schema.get("enum"), schema.get("const")])
    if isinstance(schema, Mapping | list | tuple):
        for part in schema.values() if isinstance(schema, Mapping) else schema:
            yield from _enums(part)
