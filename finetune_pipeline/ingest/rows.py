"""What a reader gives: one row of a file as it was read, with its line, and what is wrong with it if it is unreadable.

Row(line=12, value={"message": "where is it?", "intent": "delivery"})
Row(line=13, value={"": "{\\"message"}, problem="invalid-json", detail="Unterminated string: line 1 column 2 (char 1)")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MAX_CHARS = 1 << 24  # of a line or a field: no model reads a text of millions of tokens, and it has to fit into memory


@dataclass(frozen=True, slots=True)
class Row:
    """`problem` is the slug of a drop ("invalid-json", "malformed-row", "too-long", "duplicate-key", "empty-row");
    `value` is
    then what could be read, for the drop's id only. `detail` explains it, and never quotes the row (it may hold
    personal data)."""

    line: int
    value: Mapping[str, Any]
    problem: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file. Each iteration reads the file from its beginning."""

    read: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        return self.read()


def too_long(line: int, text: str) -> Row:
    """The row of a text beyond MAX_CHARS."""
    return Row(line, {"": text}, "too-long", f"longer than {MAX_CHARS:,} characters")


def writable(text: str) -> str:
    """The text without half characters ("\\ud83d" alone, from a text that was cut): no file can hold them."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
