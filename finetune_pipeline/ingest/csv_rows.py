"""Records of a CSV file, with the line each begins on, and without losing a file to one broken quote.

The csv module reads an unclosed quote on to the next quote, many rows further, or to the end of the file. Here such a
record is given up after its first line, which is reported, and reading goes on with the second. An unclosed quote shows
by what follows the next quote, by the number of lines, or by a number of fields that is not the header's where one of
the lines, by itself, has it.

What it is not: a reader of types; every field is text.

    for record in records(lines, ","): ...        # Record(line=2, fields=["where is it?", "delivery"], problem=None)
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from finetune_pipeline.ingest import rows
from finetune_pipeline.ingest.encoding import LongLine

MAX_LINES = 2_000  # a record of more lines is an unclosed quote
DELIMITERS = ",;\t|"


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `line` counts from 1. A broken one has the text of its line as its only field, and a `problem`;
    `too_long` where that is a line or a field beyond rows.MAX_CHARS."""

    line: int
    fields: list[str]
    problem: str | None = None
    too_long: bool = False


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
            raise csv.Error(f"not closed within {MAX_LINES} lines")
        line = self._back.popleft() if self._back else next(self._fresh)
        self.taken.append(line)
        if isinstance(line, LongLine):
            raise csv.Error("a line that is too long")
        return line

    def hand_back(self) -> str:
        """All lines of this record but the first go back; gives the first."""
        first, *others = self.taken
        self._back.extendleft(reversed(others))
        self.taken = [first]
        return first


def records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """Every record, in order. A blank line is a record without fields, unless only blank lines follow."""
    csv.field_size_limit(rows.MAX_CHARS)
    source = _Lines(lines)
    line, width = 1, 0
    blank: list[Record] = []
    for fields, problem in _parsed(source, delimiter):
        others = source.taken[1:] if problem is None and width and len(fields) != width else ()
        if any(each.count(delimiter) == width - 1 for each in others):
            fields, problem = [], f"{len(fields)} fields over {len(source.taken)} lines; is a quote not closed?"
        if problem is not None:
            yield from blank
            blank = []
            yield _broken(line, source.hand_back(), problem)
        elif fields:
            yield from blank
            blank, width = [], width or len(fields)
            yield Record(line, fields)
        else:
            blank.append(Record(line, []))
        line += len(source.taken)


def _parsed(source: _Lines, delimiter: str) -> Iterator[tuple[list[str], str | None]]:
    """Fields of each record, or what the csv module says against it; its lines are `source.taken`."""
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.taken = []
        try:
            yield next(reader), None
        except StopIteration:
            return
        except csv.Error as error:
            yield [], f"broken quotes: {error}"
            reader = csv.reader(source, delimiter=delimiter, strict=True)


def _broken(line: int, text: str, problem: str) -> Record:
    too_long = isinstance(text, LongLine) or len(text) > rows.MAX_CHARS or "field limit" in problem
    return Record(line, [text.rstrip("\r\n")], problem, too_long)


def delimiter_of(header: str) -> str:
    """The delimiter that a header line uses; a comma where there is none (one column)."""
    counts = {mark: header.count(mark) for mark in DELIMITERS}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","
