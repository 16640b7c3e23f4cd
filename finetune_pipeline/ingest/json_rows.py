"""Rows of JSON Lines and of JSON files, each with the line it begins on.

A line or element that cannot be read drops only itself: invalid JSON, nested too deeply, a number of thousands of
digits, a key that occurs twice in one object (either value may be the intended one). A JSON file that ends early is
refused as a whole, since the beginning of its next row is unknown (JSONDecodeError, which json_reader.py turns into a
DataError with line and column).

    list(array_rows('[{"q": "hi", "a": "hello"}]'))      # [Row(line=1, value={"q": "hi", "a": "hello"}, ...)]
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from finetune_pipeline.ingest.encoding import LongLine
from finetune_pipeline.ingest.rows import Row, too_long

_SPACE = re.compile(r"[ \t\r\n]*")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)  # a whole string, or a bracket
_SCALAR = re.compile(r"[^\s,\]}]*")
_KEY_CHARS = 60


class DuplicateKey(ValueError):
    """A key that occurs twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKey(f"the key {repeated[:_KEY_CHARS]!r} occurs more than once in an object")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


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
    if isinstance(line, LongLine):
        return too_long(number, line)
    try:
        return _row(number, _DECODER.decode(line))
    except (ValueError, RecursionError) as error:
        return _unreadable(number, line.strip(), error)


def array_rows(text: str) -> Iterator[Row]:
    """Rows of an array of objects, or of an object that holds one such array ({"data": [...]}); else the one object.

    JSONDecodeError where the text ends early or continues after its end; DuplicateKey for the object around the array.
    """
    start = _skip_space(text, 0)
    inside = start + 1 if text[start : start + 1] == "[" else _only_array(text)
    if inside is None:
        row, end = _decode(text, start, 1)
        yield row
    else:
        end = yield from _elements(text, inside)
        if inside > start + 1:
            _check_around(text, inside, end)
            return
    if _skip_space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, _skip_space(text, end))


def _only_array(text: str) -> int | None:
    """The position after the opening bracket of the one array of objects in the outermost object; None where there is
    none, or several, or the object is one conversation."""
    depth, positions = 0, []
    for token in _TOKEN.finditer(text):
        mark, after = text[token.start()], _skip_space(text, token.end())
        if mark == '"':
            if depth == 1 and token[0] in ('"messages"', '"conversations"') and text[after : after + 1] == ":":
                return None
        elif mark in "[{":
            if depth == 1 and mark == "[" and text[after : after + 1] == "{":
                positions.append(token.end())
            depth += 1
        else:
            depth -= 1
    return positions[0] if len(positions) == 1 else None


def _check_around(text: str, inside: int, end: int) -> None:
    """JSONDecodeError or DuplicateKey unless the text is valid JSON with an empty array in place of its rows."""
    try:
        _DECODER.decode(text[:inside] + text[end - 1 :])
    except json.JSONDecodeError as error:
        position = error.pos if error.pos < inside else error.pos + end - 1 - inside
        raise json.JSONDecodeError(error.msg, text, position) from None


def _elements(text: str, position: int) -> Generator[Row, None, int]:
    """The elements of the array that is opened just before `position`, decoded one by one to know their lines.

    Returns the position after the array.
    """
    line, counted = 1, 0
    position = _skip_space(text, position)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        row, end = _decode(text, position, line)
        yield row
        position = _skip_space(text, end)
        if text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif text[position : position + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
    return position + 1


def _decode(text: str, position: int, line: int) -> tuple[Row, int]:
    """The row of the value that begins at `position`, and the position after it. JSONDecodeError."""
    try:
        value, end = _DECODER.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        end = _end_of(text, position)
        return _unreadable(line, text[position:end], error), end
    return _row(line, value), end


def _end_of(text: str, position: int) -> int:
    """Where a value that could not be decoded ends, by its brackets alone."""
    if text[position] not in "[{":
        scalar = _SCALAR.match(text, position)
        return scalar.end() if scalar else position
    depth = 0
    for token in _TOKEN.finditer(text, position):
        mark = text[token.start()]
        depth += (mark in "[{") - (mark in "]}")
        if depth == 0:
            return token.end()
    raise json.JSONDecodeError("Brackets are not closed", text, position)


def _skip_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return space.end() if space else position


def _row(number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(number, value) if value else Row(number, {}, "empty-row", "an object without keys")
    kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")
    return Row(number, {"": value}, "invalid-json", f"{kind}, where an object was expected")


def _unreadable(number: int, text: str, error: Exception) -> Row:
    if isinstance(error, DuplicateKey):
        return Row(number, {"": text}, "duplicate-key", str(error))
    if isinstance(error, json.JSONDecodeError):
        return Row(number, {"": text}, "invalid-json", str(error))
    deep = isinstance(error, RecursionError)
    return Row(number, {"": text}, "invalid-json", "nested too deeply" if deep else "a number of too many digits")
