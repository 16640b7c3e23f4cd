"""Rows of JSON Lines and of JSON files, each with the line it begins on.

A line that is no JSON costs only itself. A JSON file that breaks off costs the file: nobody can say where its next row
begins (JSONDecodeError, which readers.py turns into a DataError with line and column).

    list(array_rows('[{"q": "hi", "a": "hello"}]'))      # [Row(line=1, value={"q": "hi", "a": "hello"}, ...)]
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from finetune_pipeline.ingest.rows import Row

_SPACE = " \t\r\n"


def line_rows(lines: Iterable[str]) -> Iterator[Row]:
    """One row a line. A blank line counts as an empty row, unless only blank lines follow."""
    blank: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank.append(Row(number, {}, "empty-row", "the line is blank"))
            continue
        yield from blank
        blank = []
        yield _line(number, line)


def _line(number: int, line: str) -> Row:
    try:
        return _row(number, json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        return Row(number, {"": line.strip()}, "not-json", str(error))


def array_rows(text: str) -> Iterator[Row]:
    """Rows of an array of objects, or of an object that holds one such array ({"data": [...]}); else the one object.

    JSONDecodeError where the text breaks off.
    """
    start = _skip_space(text, 0)
    if text[start : start + 1] == "[":
        yield from _elements(text, start + 1)
        return
    value = json.loads(text)
    inside = _only_array(value)
    yield from (_row(number, item) for number, item in enumerate(inside if inside is not None else [value], 1))


def _only_array(value: Any) -> list[Any] | None:
    if not isinstance(value, dict) or {"messages", "conversations"} & set(value):  # those are one conversation
        return None
    arrays = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    return arrays[0] if len(arrays) == 1 else None


def _elements(text: str, place: int) -> Iterator[Row]:
    """The elements of the array that was opened just before `place`, decoded one by one to know their lines."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    place = _skip_space(text, place)
    while text[place : place + 1] != "]":
        value, end = decoder.raw_decode(text, place)
        line, counted = line + text.count("\n", counted, place), place
        yield _row(line, value)
        place = _skip_space(text, end)
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def _row(number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(number, value) if value else Row(number, {}, "empty-row", "an object without keys")
    kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")
    return Row(number, {"": value}, "not-json", f"{kind}, where an object was expected")
