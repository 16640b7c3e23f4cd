"""The types that readers share: a row, the rows of a file, the file once opened, and the options for opening it.

Row(line=12, value={"message": "where is it?", "intent": "delivery"})
Row(line=13, value={"": "{\\"message"}, problem="invalid-json", detail="Unterminated string: line 1 column 2 (char 1)")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.errors import DataError

MAX_CHARS = 1 << 24  # of a line or a field: no model reads a text of millions of tokens, and it has to fit into memory


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file. `line` counts from 1 (rows of Parquet files and data sets: their number).

    `problem` is the reason of a drop ("invalid-json", "malformed-row", "too-long", "duplicate-key", "empty-row");
    `value` is then what could be read, used only for the drop's id. `detail` explains the problem and never quotes the
    row, which may hold personal data.
    """

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


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a source declares about reading: the split of a saved data set, and the encoding of a text file."""

    split: str = "train"
    encoding: str = "auto"


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file that can be read. `columns` is empty where the format has no header (JSON Lines, JSON)."""

    format: str
    encoding: str  # empty for binary formats
    rows: Iterable[Row]
    columns: tuple[str, ...] = ()


def too_long(line: int, text: str) -> Row:
    """The row of a text beyond MAX_CHARS."""
    return Row(line, {"": text}, "too-long", f"longer than {MAX_CHARS:,} characters")


def writable(text: str) -> str:
    """The text with every unpaired surrogate ("\\ud83d" alone, from a text that was cut) replaced by U+FFFD.

    No file can hold an unpaired surrogate.
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def check_unique(path: object, columns: Sequence[str], hint: str) -> None:
    """DataError when two columns have the same name."""
    repeated = next((name for name, count in Counter(columns).items() if name and count > 1), None)
    if repeated:
        raise DataError(f"{path} has the column {repeated!r} more than once", hint)
