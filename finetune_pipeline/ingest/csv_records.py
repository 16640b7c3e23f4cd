"""Records of a CSV file, with the line each begins on. An unclosed quote drops one line, not the rest of the file.

The csv module reads from an unclosed quote to the next quote, many rows further, or to the end of the file. Here such a
record ends after its first line, which is reported as a problem, and reading continues with the second line. An
unclosed quote is detected by the text after the next quote, by the number of lines, or by a number of fields that
differs from the header's where one of the lines alone has the right number.

Every field is text; types are not read.

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
    """One record; `line` counts from 1. A malformed record has the text of its line as its only field, and a
    `problem`; `too_long` is set where that line or a field exceeds rows.MAX_CHARS."""

    line: int
    fields: list[str]
    problem: str | None = None
    too_long: bool = False


class _LineSource:
    """An iterator of lines that takes lines back: the csv module reports a malformed record only after reading on."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._unread = iter(lines)
        self._returned: deque[str] = deque()
        self.taken: list[str] = []

    def __iter__(self) -> _LineSource:
        return self

    def __next__(self) -> str:
        if len(self.taken) > MAX_LINES:
            raise csv.Error(f"not closed within {MAX_LINES} lines")
        line = self._returned.popleft() if self._returned else next(self._unread)
        self.taken.append(line)
        if isinstance(line, LongLine):
            raise csv.Error("a line that is too long")
        return line

    def put_back(self) -> str:
        """Return all lines of the current record but the first to the source; returns the first."""
        first, *rest = self.taken
        self._returned.extendleft(reversed(rest))
        self.taken = [first]
        return first


def records(lines: Iterable[str], delimiter: str) -> Iterator[Record]:
    """Every record, in order. A blank line is a record without fields, unless only blank lines follow."""
    csv.field_size_limit(rows.MAX_CHARS)
    source = _LineSource(lines)
    line, width = 1, 0
    blank: list[Record] = []
    for fields, problem in _parsed(source, delimiter):
        later_lines = source.taken[1:] if problem is None and width and len(fields) != width else ()
        if any(later.count(delimiter) == width - 1 for later in later_lines):
            fields, problem = [], f"{len(fields)} fields over {len(source.taken)} lines; is a quote not closed?"
        if problem is not None:
            yield from blank
            blank = []
            yield _malformed(line, source.put_back(), problem)
        elif fields:
            yield from blank
            blank, width = [], width or len(fields)
            yield Record(line, fields)
        else:
            blank.append(Record(line, []))
        line += len(source.taken)


def _parsed(source: _LineSource, delimiter: str) -> Iterator[tuple[list[str], str | None]]:
    """(fields, problem) of each record; the problem is the csv module's error. Its lines are `source.taken`."""
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


def _malformed(line: int, text: str, problem: str) -> Record:
    too_long = isinstance(text, LongLine) or len(text) > rows.MAX_CHARS or "field limit" in problem
    return Record(line, [text.rstrip("\r\n")], problem, too_long)


def delimiter_of(header: str) -> str:
    """The most frequent delimiter of a header line; a comma where there is none (one column)."""
    counts = {mark: header.count(mark) for mark in DELIMITERS}
    best = max(counts, key=lambda mark: counts[mark])
    return best if counts[best] else ","
