"""Rows of JSON Lines and of JSON files, each with the line it begins on.

A line or element that cannot be read costs only itself: no JSON, nested too deeply, a number of thousands of digits, a
key that stands twice in one object (which of the two values is meant?). A JSON file that breaks off costs the file:
nobody can say where its next row begins (JSONDecodeError, of which readers.py makes a DataError with line and column).

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
    """A key that stands twice in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DuplicateKey(f"the key {twice[:_KEY_CHARS]!r} stands more than once in an object")
    return found


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
        return _broken(number, line.strip(), error)


def array_rows(text: str) -> Iterator[Row]:
    """Rows of an array of objects, or of an object that holds one such array ({"data": [...]}); else the one object.

    JSONDecodeError where the text breaks off or goes on behind its end; DuplicateKey for the object around the array.
    """
    start = _past_space(text, 0)
    inside = start + 1 if text[start : start + 1] == "[" else _only_array(text)
    if inside is None:
        row, end = _decoded(text, start, 1)
        yield row
    else:
        end = yield from _elements(text, inside)
        if inside > start + 1:
            _check_around(text, inside, end)
            return
    if _past_space(text, end) < len(text):
        raise json.JSONDecodeError("Extra data", text, _past_space(text, end))


def _only_array(text: str) -> int | None:
    """The place behind the opening bracket of the one array of objects in the outermost object; None where there is
    none, or several, or the object is one conversation."""
    depth, found = 0, []
    for token in _TOKEN.finditer(text):
        mark, after = text[token.start()], _past_space(text, token.end())
        if mark == '"':
            if depth == 1 and token[0] in ('"messages"', '"conversations"') and text[after : after + 1] == ":":
                return None
        elif mark in "[{":
            if depth == 1 and mark == "[" and text[after : after + 1] == "{":
                found.append(token.end())
            depth += 1
        else:
            depth -= 1
    return found[0] if len(found) == 1 else None


def _check_around(text: str, inside: int, end: int) -> None:
    """JSONDecodeError or DuplicateKey unless the text is valid JSON with an empty array in the place of its rows."""
    try:
        _DECODER.decode(text[:inside] + text[end - 1 :])
    except json.JSONDecodeError as error:
        place = error.pos if error.pos < inside else error.pos + end - 1 - inside
        raise json.JSONDecodeError(error.msg, text, place) from None


def _elements(text: str, place: int) -> Generator[Row, None, int]:
    """The elements of the array that was opened just before `place`, decoded one by one to know their lines. Returns
    the place behind the array."""
    line, counted = 1, 0
    place = _past_space(text, place)
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        row, end = _decoded(text, place, line)
        yield row
        place = _past_space(text, end)
        if text[place : place + 1] == ",":
            place = _past_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
    return place + 1


def _decoded(text: str, place: int, line: int) -> tuple[Row, int]:
    """The row of the value that begins at `place`, and the place behind it. JSONDecodeError."""
    try:
        value, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        end = _end_of(text, place)
        return _broken(line, text[place:end], error), end
    return _row(line, value), end


def _end_of(text: str, place: int) -> int:
    """Where a value ends that could not be decoded, by its brackets alone."""
    if text[place] not in "[{":
        found = _SCALAR.match(text, place)
        return found.end() if found else place
    depth = 0
    for token in _TOKEN.finditer(text, place):
        mark = text[token.start()]
        depth += (mark in "[{") - (mark in "]}")
        if depth == 0:
            return token.end()
    raise json.JSONDecodeError("Brackets are not closed", text, place)


def _past_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _row(number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(number, value) if value else Row(number, {}, "empty-row", "an object without keys")
    kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number")
    return Row(number, {"": value}, "invalid-json", f"{kind}, where an object was expected")


def _broken(number: int, text: str, error: Exception) -> Row:
    if isinstance(error, DuplicateKey):
        return Row(number, {"": text}, "duplicate-key", str(error))
    if isinstance(error, json.JSONDecodeError):
        return Row(number, {"": text}, "invalid-json", str(error))
    deep = isinstance(error, RecursionError)
    return Row(number, {"": text}, "invalid-json", "nested too deeply" if deep else "a number of too many digits")
