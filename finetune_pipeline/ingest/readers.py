"""A file becomes rows: mappings of column to value, each with its line. CSV, JSONL, JSON, Parquet, `datasets`.

A row that cannot be read is still a row (`Row.problem` says why), so that nothing is skipped. Files are streamed, but
for a JSON array, which has to be in memory as text.

What it is not: the meaning of the columns (layouts.py), or where files lie (sources.py).

    opened = open_rows(UPath("raw/tickets.csv"))     # Opened(format="csv", encoding="utf-8", columns=("message", ...))
    next(iter(opened.rows))                          # Row(line=2, value={"message": "where is it?", ...})
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest import csv_rows
from finetune_pipeline.ingest.arrow_rows import BATCH_ROWS, arrow_rows
from finetune_pipeline.ingest.encoding import LongLine, detect, lines, of_head, open_text
from finetune_pipeline.ingest.json_rows import DuplicateKey, array_rows, line_rows
from finetune_pipeline.ingest.rows import Row, Rows, too_long

_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")
_ARRAY = re.compile(r"\[\s*\{|\[\s*\n")  # an array of objects, which no line of JSON Lines is
_PACKED = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV (UTF-8)"),
    b"\x1f\x8b": ("compressed (gzip)", "unpack it first: gunzip"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV (UTF-8)"),
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that can be read: its rows (each iteration begins anew), and what was found out about it. `columns` is
    known before the first row where the format has a header (CSV, Parquet, `datasets`), else empty."""

    format: str
    encoding: str
    rows: Iterable[Row]
    columns: tuple[str, ...] = ()


def open_rows(path: UPath, declared: str = "auto", split: str = "train", encoding: str = "auto") -> Opened:
    """Open a file in its declared format (`auto`: by name and content). DataError names the file and the hint, here or
    when its rows are read."""
    with _named(path):
        kind = declared if declared != "auto" else format_of(path)
        if kind == "dataset":
            opened = _dataset(path, split)
        elif kind == "parquet":
            opened = _parquet(path)
        else:
            text = {"csv": _csv, "jsonl": _jsonl, "json": _json}[kind]
            opened = text(path, detect(path) if encoding == "auto" else encoding)
    return replace(opened, rows=Rows(partial(_guarded, path, opened.rows)))


def _guarded(path: UPath, rows: Iterable[Row]) -> Iterator[Row]:
    with _named(path):
        yield from rows


@contextmanager
def _named(path: UPath) -> Iterator[None]:
    """Errors of the system, of a codec and of Arrow become a DataError that names the file."""
    try:
        yield
    except (OSError, UnicodeError, _arrow_error()) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"cannot read {path}: {why}", "check that the file is whole and may be read") from error


def _arrow_error() -> type[Exception]:
    """The base of pyarrow's errors, without importing it for those who did not."""
    arrow = sys.modules.get("pyarrow")
    return arrow.ArrowException if arrow else OSError


def format_of(path: UPath) -> str:
    """By name; `.json` and unknown names by how they begin. DataError for what is no data file."""
    if path.is_dir():
        if any((path / name).exists() for name in _DATASET_FILES):
            return "dataset"
        raise DataError(
            f"{path} is a folder, but not one that `datasets` saved",
            f"name its files, e.g. `path: {path.name}/*.jsonl`",
        )
    with path.open("rb") as file:
        head = file.read(1 << 16)
    for mark, (what, hint) in _PACKED.items():
        if head.startswith(mark):
            raise DataError(f"{path} is {what}", hint)
    text = head.decode(of_head(head) or "utf-8-sig", "replace").lstrip()
    by_name = _SUFFIXES.get(path.suffix.lower())
    if by_name == "jsonl" and _ARRAY.match(text):
        return "json"
    return by_name or _by_content(path, head, text)


def _by_content(path: UPath, head: bytes, text: str) -> str:
    if head.startswith(b"PAR1"):
        return "parquet"
    if text.startswith("{"):
        return "jsonl" if _is_lines(text) else "json"
    if text.startswith("[") or path.suffix.lower() == ".json":
        return "json"
    raise DataError(f"{path} has no format known here", "set the source's `format` to csv, jsonl, json or parquet")


def _is_lines(text: str) -> bool:
    """JSON Lines: the first line is an object by itself (whatever the file's name says), and another line follows."""
    first, _, rest = text.partition("\n")
    try:
        json.loads(first)
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass  # an object that cannot be read is one by itself all the same
    return bool(rest.strip())


def _csv(path: UPath, encoding: str) -> Opened:
    with open_text(path, encoding) as file:
        header_line = next((line for line in lines(file) if line.strip()), "")
    if isinstance(header_line, LongLine):
        raise DataError(f"{path} begins with a line of millions of characters", "write its columns into the first line")
    mark = "\t" if path.suffix.lower() == ".tsv" else csv_rows.delimiter_of(header_line)
    header = next((record for record in _records(path, encoding, mark) if record.fields), None)
    if header and header.problem:
        raise DataError(f"the header of {path} cannot be read: {header.problem}", "fix the quotes in its first line")
    columns = tuple(name.strip() for name in header.fields) if header else ()
    _once_each(path, columns, "rename one of them in its first line")

    def rows() -> Iterator[Row]:
        found = _records(path, encoding, mark)
        next((record for record in found if record.fields), None)
        yield from (_csv_row(record, columns) for record in found)

    return Opened("csv", encoding, Rows(rows), tuple(c for c in columns if c))


def _once_each(path: UPath, columns: Sequence[str], hint: str) -> None:
    """DataError when two columns have one name."""
    twice = next((name for name, count in Counter(columns).items() if name and count > 1), None)
    if twice:
        raise DataError(f"{path} has the column {twice!r} more than once", hint)


def _records(path: UPath, encoding: str, mark: str) -> Iterator[csv_rows.Record]:
    with open_text(path, encoding) as file:
        yield from csv_rows.records(lines(file), mark)


def _csv_row(record: csv_rows.Record, columns: tuple[str, ...]) -> Row:
    fields = record.fields
    if record.too_long:
        return too_long(record.line, fields[0])
    if record.problem:
        return Row(record.line, {"": fields[0]}, "malformed-row", record.problem)
    if not any(field.strip() for field in fields):
        return Row(record.line, {}, "empty-row", "every field is empty")
    if any(field.strip() for field in fields[len(columns) :]):
        detail = f"{len(fields)} fields under {len(columns)} columns; is a text that holds the delimiter not quoted?"
        return Row(record.line, {str(number): field for number, field in enumerate(fields)}, "malformed-row", detail)
    return Row(record.line, {name: field for name, field in zip(columns, fields, strict=False) if name})


def _jsonl(path: UPath, encoding: str) -> Opened:
    def rows() -> Iterator[Row]:
        with open_text(path, encoding) as file:
            yield from line_rows(lines(file))

    return Opened("jsonl", encoding, Rows(rows))


def _json(path: UPath, encoding: str) -> Opened:
    with open_text(path, encoding) as file:
        text = file.read()
    if not text.strip():
        return Opened("json", encoding, ())
    try:
        return Opened("json", encoding, list(array_rows(text)))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no valid JSON: line {error.lineno}, column {error.colno}: {error.msg}",
            "fix it there, or save one object a line as .jsonl, where a broken line costs only itself",
        ) from error
    except (ValueError, RecursionError) as error:  # in the object around the rows
        why = str(error) if isinstance(error, DuplicateKey) else "it is nested too deeply, or has a number too long"
        raise DataError(f"{path} cannot be read: {why}", "save its rows alone, one object a line, as .jsonl") from error


def _parquet(path: UPath) -> Opened:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path.open("rb")) as file:
            columns = tuple(file.schema_arrow.names)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is no Parquet file: {error}", "write it again, or set the source's `format`"
        ) from error
    _once_each(path, columns, "write it again with one of them renamed")

    def rows() -> Iterator[Row]:
        with pq.ParquetFile(path.open("rb")) as file:
            yield from arrow_rows(file.iter_batches(BATCH_ROWS))

    return Opened("parquet", "", Rows(rows), columns)


def _dataset(path: UPath, split: str) -> Opened:
    """A folder that `datasets` saved with save_to_disk(): one data set, or several splits."""
    from finetune_pipeline.ingest.saved_dataset import open_saved

    columns, rows = open_saved(path, split)
    return Opened("dataset", "", rows, columns)
