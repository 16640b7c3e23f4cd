"""The readers of JSON Lines (streamed) and of JSON files (in memory as text).

list(open_jsonl(UPath("raw/chat.jsonl"), ReadOptions()).rows)    # [Row(line=1, value={"prompt": "hi", ...}), ...]
list(open_json(UPath("raw/chat.json"), ReadOptions()).rows)      # rows of an array, or of {"data": [...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.encoding import encoding_of, lines, open_text
from finetune_pipeline.ingest.json_rows import DuplicateKey, array_rows, line_rows
from finetune_pipeline.ingest.rows import OpenedFile, ReadOptions, Row, Rows

_ARRAY = re.compile(r"\[\s*\{|\[\s*\n")  # an array of objects, which no line of JSON Lines is


def open_jsonl(path: UPath, options: ReadOptions) -> OpenedFile:
    """Open a JSON Lines file: one object a line."""
    encoding = encoding_of(path, options.encoding)

    def rows() -> Iterator[Row]:
        with open_text(path, encoding) as file:
            yield from line_rows(lines(file))

    return OpenedFile("jsonl", encoding, Rows(rows))


def open_json(path: UPath, options: ReadOptions) -> OpenedFile:
    """Open a JSON file: an array of objects, an object that holds one such array, or one object.

    DataError where the file is not valid JSON outside its rows.
    """
    encoding = encoding_of(path, options.encoding)
    with open_text(path, encoding) as file:
        text = file.read()
    if not text.strip():
        return OpenedFile("json", encoding, ())
    try:
        return OpenedFile("json", encoding, list(array_rows(text)))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no valid JSON: line {error.lineno}, column {error.colno}: {error.msg}",
            "fix it there, or save one object a line as .jsonl, where a malformed line drops only itself",
        ) from error
    except (ValueError, RecursionError) as error:  # in the object around the rows
        why = str(error) if isinstance(error, DuplicateKey) else "it is nested too deeply, or has a number too long"
        raise DataError(f"{path} cannot be read: {why}", "save its rows alone, one object a line, as .jsonl") from error


def is_array(text: str) -> bool:
    """Whether a file that begins with this text is an array of objects."""
    return bool(_ARRAY.match(text))


def is_json_lines(text: str) -> bool:
    """Whether a file that begins with this text is JSON Lines: the first line is a whole object and another follows."""
    if not text.startswith("{"):
        return False
    first, _, rest = text.partition("\n")
    try:
        json.loads(first)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass  # a whole object, though its value cannot be read
    return bool(rest.strip())
