"""Converts the rows of one file to examples and drops: one record for each row.

An id is the hash of the source's name, the file's name, the row's content, and how often that content occurred in the
file before. It does not change when other rows are added, moved or removed.

The rows of a file with unpaired preferences are read twice: first to find the good row that each bad one belongs to.
The bad one is then a drop with the reason "merged-into-pair", or "no-good-completion" where no good row has its prompt.
The bad completions are held in memory.

    file = SourceFile("raw/a.csv", source, open_rows(path), task.answer)
    list(file.records())           # [Example(id="9f1c…", ...), Drop(id="77ab…", reason="no-prompt", ...)]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

from finetune_pipeline.config import AnswerFormat, Source
from finetune_pipeline.ingest.conversations import conversation
from finetune_pipeline.ingest.groups import group_of
from finetune_pipeline.ingest.layouts import UNPAIRED, Layout, MissingColumns, layout_of
from finetune_pipeline.ingest.preferences import Partners, is_flag
from finetune_pipeline.ingest.rows import OpenedFile, Row, writable
from finetune_pipeline.ingest.turns import Conversation, InvalidRow
from finetune_pipeline.records import Drop, Example, content_id
from finetune_pipeline.records.ledger import counted

STAGE = "ingest"
PEEK_ROWS = 50  # the columns of a file without header are the keys of these rows; of all rows where these lack columns
MERGED = "merged-into-pair"  # the row is not lost: its completion is the rejected one of another row
Record: TypeAlias = Example | Drop


class SourceFile:
    """One file of a source. `layout` is how its rows are read, or which columns the file lacks."""

    def __init__(self, name: str, source: Source, opened: OpenedFile, answer: AnswerFormat) -> None:
        self.columns = opened.columns or _keys(islice(opened.rows, PEEK_ROWS))
        self.name, self.source, self.format, self.encoding = name, source, opened.format, opened.encoding
        flags = _flags(islice(opened.rows, PEEK_ROWS)) if set(self.columns).issuperset(UNPAIRED) else ()
        self.layout: Layout | MissingColumns = layout_of(self.columns, source, flags)
        if isinstance(self.layout, MissingColumns) and not opened.columns:  # a key may first occur in a later row
            self.columns = _keys(opened.rows)
            self.layout = layout_of(self.columns, source, flags)
        self.unreadable = Counter(row.problem for row in opened.rows if row.problem) if not self.columns else Counter()
        self._rows = opened.rows
        self._schema: Mapping[str, Any] | None = answer.json_schema
        self._occurrences: Counter[str] = Counter()
        self._partners = Partners({}, {})

    @property
    def problem(self) -> str:
        """Why no row of this file can be an example, as a sentence without its subject; empty where one can be."""
        if not self.columns:
            reasons = counted(self.unreadable)
            return f"has no row that can be read ({reasons})" if reasons else "is empty"
        if isinstance(self.layout, MissingColumns):
            return f"lacks {self.layout.needed}; it has: {', '.join(self.columns)}"
        return ""

    def records(self) -> Iterator[Record]:
        """One record for every row, in order."""
        if isinstance(self.layout, Layout) and self.layout.kind == "unpaired":
            self._partners = Partners.of(self._readable(self.layout))
        return (self._record(row) for row in self._rows)

    def _readable(self, layout: Layout) -> Iterator[tuple[int, Conversation]]:
        """The rows that are no drop, by their line."""
        for row in self._rows:
            if row.problem is None:
                try:
                    yield row.line, conversation(row.value, layout, self._schema)
                except Exception:  # noqa: BLE001, S112 - `_record` reads the row again, and drops it with the reason
                    continue

    def _record(self, row: Row) -> Record:
        try:
            return self._converted(row)
        except Exception as error:  # noqa: BLE001 - no content of one row may prevent the others from being read
            return self._drop(row, "malformed-row", f"reading it ended with {type(error).__name__}")

    def _converted(self, row: Row) -> Record:
        if row.problem is not None:
            return self._drop(row, row.problem, row.detail)
        if isinstance(self.layout, MissingColumns):
            return self._drop(row, "missing-column", f"{self.name} lacks {self.layout.needed}")
        try:
            return self._example(row, self.layout, conversation(row.value, self.layout, self._schema))
        except InvalidRow as invalid:
            return self._drop(row, invalid.reason, invalid.detail)

    def _example(self, row: Row, layout: Layout, parsed: Conversation) -> Record:
        if parsed.is_bad:
            return self._bad(row)
        messages = [[m.role, m.content] for m in parsed.messages]
        whole = messages if parsed.rejected is None else [*messages, ["rejected", parsed.rejected]]
        id_, origin = self._id(json.dumps(whole, ensure_ascii=False)), self._origin(row.line)
        group = group_of(row.value.get(layout.group)) if layout.group else None
        rejected = self._partners.rejected.get(row.line) if parsed.rejected is None else parsed.rejected
        return Example(id_, parsed.messages, self.source.label, origin, group, rejected)

    def _bad(self, row: Row) -> Drop:
        """The drop of a row whose completion is a bad one."""
        good = self._partners.merged_into.get(row.line)
        if good is None:
            return self._drop(row, "no-good-completion", "the label is false, and no row has a good one for its prompt")
        return self._drop(row, MERGED, f"the rejected completion of {self._origin(good)}")

    def _drop(self, row: Row, reason: str, detail: str) -> Drop:
        try:
            content = json.dumps(row.value, ensure_ascii=False, default=str)
        except (ValueError, TypeError, RecursionError):  # content that cannot be written is identified by its line
            content = f"line {row.line}"
        return Drop(self._id(f"dropped:{content}"), self._origin(row.line), STAGE, reason, writable(detail))

    def _id(self, content: str) -> str:
        key = content_id(content)
        self._occurrences[key] += 1
        return content_id(self.source.label, self.name, content, str(self._occurrences[key]))

    def _origin(self, line: int) -> str:
        return f"{writable(self.name.rsplit('/', 1)[-1])}:{line}"


def _flags(rows: Iterable[Row]) -> Collection[str]:
    """The columns of these rows that hold nothing but true and false."""
    cells = [(column, is_flag(value)) for row in rows if row.problem is None for column, value in row.value.items()]
    return {column for column, _ in cells} - {column for column, flag in cells if not flag}


def _keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """All keys of these rows, in the order of their first occurrence."""
    return tuple(dict.fromkeys(writable(key) for row in rows if row.problem is None for key in row.value))
