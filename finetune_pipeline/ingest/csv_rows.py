"""Records of a CSV file, with the line each begins on, and without losing a file to one broken quote.

The csv module reads an unclosed quote on to the next quote, many rows further, or to the end of the file. Here such a
record is given up after its first line, which is reported, and reading goes on with the second.

What it is not: a reader of types; every field is text.

    for record in records(lines, ","): ...        # Record(line=2, fields=["where is it?", "delivery"], problem=None)
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MAX_LINES = 2_000  # a record of more lines is an unclosed quote
_FIELD_CHARS = 1 << 24
DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `line` counts from 1. A broken one has the text of its line as its only field, and a `problem`."""

    line: int
    fields: list[str]
    problem: str | None = None


class _Lines:
    """Lines that can be handed back: the csv module says too late that a record was broken."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._fresh = iter(lines)
        self._back: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if len(self.taken) > MAX_LINES:
            raise csv.Error("unexpected end of data")
        line = self._back.popleft() if self._back else next(self._fresh)
        self.taken.append(line)
        return line

    def hand_back(self) -> str:
        """All lines of this record but the first go back; gives the first."""
        first, *others = self.taken
        self._back.extendleft(reversed(others))
        return first


def records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """Every record, in order. A blank line is a record without fields, unless only blank lines follow."""
    csv.field_size_limit(_FIELD_CHARS)
    source = _Lines(lines)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    line = 1
    blank: list[Record] = []
    while True:
        source.taken = []
        try:
            fields, problem = next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            fields, problem = [source.hand_back().rstrip("\r\n")], f"broken quotes: {error}"
            source.taken = source.taken[:1]
            reader = csv.reader(source, delimiter=delimiter, strict=True)
        if fields:
            yield from blank
            blank = []
            yield Record(line, fields, problem)
        else:
            blank.append(Record(line, []))
        line += len(source.taken)


def delimiter_of(header: str) -> str:
    """The delimiter that a header line uses; a comma where there is none (one column)."""
    counts = {mark: header.count(mark) for mark in DELIMITERS}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","
