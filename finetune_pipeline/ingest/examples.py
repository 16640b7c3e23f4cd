"""The pure core of the stage: rows of one file become examples, pairs and drops, each row exactly one of them.

An id is the hash of the file it came from, its content, and how often that content stood in that file before: it stays
when rows are added, moved or removed elsewhere.

What it is not: files (sources.py, readers.py), the layouts (layouts.py, conversations.py), the asset (assets.py).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

from finetune_pipeline.config import AnswerFormat, Source
from finetune_pipeline.ingest.conversations import Parsed, RowRefused, conversation
from finetune_pipeline.ingest.groups import group_of
from finetune_pipeline.ingest.layouts import Layout, Unfit, layout_of
from finetune_pipeline.ingest.readers import Opened
from finetune_pipeline.ingest.rows import Row, writable
from finetune_pipeline.records import Drop, Example, PreferencePair, content_id

STAGE = "ingest"
PEEK_ROWS = 50  # rows whose keys are the columns of a file that has no header; all rows', where those do not do
Record: TypeAlias = Example | PreferencePair | Drop


class Reading:
    """One file being read. `layout` says how its rows are understood, or which columns it lacks."""

    def __init__(self, name: str, source: Source, opened: Opened, answer: AnswerFormat) -> None:
        self.columns = opened.columns or _keys(islice(opened.rows, PEEK_ROWS))
        self.name, self.source, self.format, self.encoding = name, source, opened.format, opened.encoding
        self.layout: Layout | Unfit = layout_of(self.columns, source)
        if isinstance(self.layout, Unfit) and not opened.columns:  # a key may come after the first rows
            self.columns = _keys(opened.rows)
            self.layout = layout_of(self.columns, source)
        self.unreadable = Counter(row.problem for row in opened.rows if row.problem) if not self.columns else Counter()
        self._rows = opened.rows
        self._schema: Mapping[str, Any] | None = answer.json_schema
        self._seen: Counter[str] = Counter()

    @property
    def complaint(self) -> str:
        """Why no row of this file can be an example, as a sentence without its subject; empty where one can be."""
        if not self.columns:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in self.unreadable.most_common())
            return f"has no row that can be read ({reasons})" if reasons else "is empty"
        if isinstance(self.layout, Unfit):
            return f"lacks {self.layout.needed}; it has: {', '.join(self.columns)}"
        return ""

    def records(self) -> Iterator[Record]:
        """One record for every row, in order."""
        return (self._record(row) for row in self._rows)

    def _record(self, row: Row) -> Record:
        try:
            return self._understood(row)
        except Exception as error:  # noqa: BLE001 - whatever one row holds must not stop the others from being read
            return self._drop(row, "malformed-row", f"reading it ended with {type(error).__name__}")

    def _understood(self, row: Row) -> Record:
        if row.problem is not None:
            return self._drop(row, row.problem, row.detail)
        if isinstance(self.layout, Unfit):
            return self._drop(row, "missing-column", f"{self.name} lacks {self.layout.needed}")
        try:
            return self._example(row, self.layout, conversation(row.value, self.layout, self._schema))
        except RowRefused as refusal:
            return self._drop(row, refusal.reason, refusal.detail)

    def _example(self, row: Row, layout: Layout, parsed: Parsed) -> Example | PreferencePair:
        messages = [[m.role, m.content] for m in parsed.messages]
        whole = messages if parsed.rejected is None else [*messages, ["rejected", parsed.rejected]]
        content = json.dumps(whole, ensure_ascii=False)
        key, origin = self._id(content), self._origin(row)
        group = group_of(row.value.get(layout.group)) if layout.group else None
        if parsed.rejected is not None:
            *prompt, answer = parsed.messages
            return PreferencePair(key, tuple(prompt), answer.content, parsed.rejected, self.source.label, origin, group)
        return Example(key, parsed.messages, self.source.label, origin, group)

    def _drop(self, row: Row, reason: str, detail: str) -> Drop:
        try:
            content = json.dumps(row.value, ensure_ascii=False, default=str)
        except (ValueError, TypeError, RecursionError):  # nothing that could be written names it: its place does
            content = f"line {row.line}"
        return Drop(self._id(f"dropped:{content}"), self._origin(row), STAGE, reason, writable(detail))

    def _id(self, content: str) -> str:
        same = content_id(content)
        self._seen[same] += 1
        return content_id(self.source.label, self.name, content, str(self._seen[same]))

    def _origin(self, row: Row) -> str:
        return f"{writable(self.name.rsplit('/', 1)[-1])}:{row.line}"


def _keys(rows: Iterable[Row]) -> tuple[str, ...]:
    """All keys of these rows, in the order in which they are seen."""
    return tuple(dict.fromkeys(writable(key) for row in rows if row.problem is None for key in row.value))
