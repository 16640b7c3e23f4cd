"""A file becomes rows: mappings of column to value, each with its line. CSV, JSONL, JSON, Parquet, `datasets`.

A row that cannot be read is still a row (`Row.problem` says why), so that nothing is skipped. Files are streamed, but
for a JSON array, which has to be in memory as text.

What it is not: the meaning of the columns (layouts.py), or where files lie (sources.py).

    opened = open_rows(UPath("raw/tickets.csv"))     # Opened(format="csv", encoding="utf-8", columns=("message", ...))
    next(opened.rows)                                # Row(line=2, value={"message": "where is it?", ...})
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest import csv_rows
from finetune_pipeline.ingest.encoding import detect, open_text
from finetune_pipeline.ingest.json_rows import array_rows, line_rows
from finetune_pipeline.ingest.rows import Row

_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that can be read: its rows (once), and what was found out about it. `columns` is known before the first
    row where the format has a header (CSV, Parquet, `datasets`), else empty."""

    format: str
    encoding: str
    rows: Iterator[Row]
    columns: tuple[str, ...] = ()


def open_rows(path: UPath, declared: str = "auto", split: str = "train", encoding: str = "auto") -> Opened:
    """Open a file in its declared format (`auto`: by name and content). DataError names the file and the cure."""
    try:
        kind = declared if declared != "auto" else format_of(path)
        if kind == "dataset":
            return _dataset(path, split)
        if kind == "parquet":
            return _parquet(path)
        text = {"csv": _csv, "jsonl": _jsonl, "json": _json}[kind]
        return text(path, detect(path) if encoding == "auto" else encoding)
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror or error}", "check that the file is there and may be read"
        ) from error


def format_of(path: UPath) -> str:
    """By name; `.json` and unknown names by how they begin. DataError for what is no data file."""
    if path.is_dir():
        if any((path / name).exists() for name in _DATASET_FILES):
            return "dataset"
        raise DataError(
            f"{path} is a folder, but not one that `datasets` saved",
            f"name its files, e.g. `path: {path.name}/*.jsonl`",
        )
    by_name = _SUFFIXES.get(path.suffix.lower())
    return by_name or _by_content(path)


def _by_content(path: UPath) -> str:
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.decode("utf-8-sig", "replace").lstrip()
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
    return bool(rest.strip())


def _csv(path: UPath, encoding: str) -> Opened:
    with open_text(path, encoding) as file:
        header_line = next((line for line in file if line.strip()), "")
    mark = "\t" if path.suffix.lower() == ".tsv" else csv_rows.delimiter_of(header_line)
    found = _records(path, encoding, mark)
    header = next((record for record in found if record.fields), None)
    columns = tuple(name.strip() for name in header.fields) if header else ()
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice:
        raise DataError(f"{path} has the column {twice!r} more than once", "rename one of them in its first line")
    return Opened("csv", encoding, (_csv_row(record, columns) for record in found), tuple(c for c in columns if c))


def _records(path: UPath, encoding: str, mark: str) -> Iterator[csv_rows.Record]:
    with open_text(path, encoding) as file:
        yield from csv_rows.records(file, mark)


def _csv_row(record: csv_rows.Record, columns: tuple[str, ...]) -> Row:
    fields = record.fields
    if record.problem:
        return Row(record.line, {"": fields[0]}, "broken-row", record.problem)
    if not any(field.strip() for field in fields):
        return Row(record.line, {}, "empty-row", "every field is empty")
    if any(field.strip() for field in fields[len(columns) :]):
        detail = f"{len(fields)} fields under {len(columns)} columns; is a text that holds the delimiter not quoted?"
        return Row(record.line, {str(number): field for number, field in enumerate(fields)}, "broken-row", detail)
    return Row(record.line, {name: field for name, field in zip(columns, fields, strict=False) if name})


def _jsonl(path: UPath, encoding: str) -> Opened:
    def rows() -> Iterator[Row]:
        with open_text(path, encoding) as file:
            yield from line_rows(file)

    return Opened("jsonl", encoding, rows())


def _json(path: UPath, encoding: str) -> Opened:
    with open_text(path, encoding) as file:
        text = file.read()
    if not text.strip():
        return Opened("json", encoding, iter(()))
    try:
        return Opened("json", encoding, iter(list(array_rows(text))))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is no valid JSON: line {error.lineno}, column {error.colno}: {error.msg}",
            "mend it there, or save one object a line as .jsonl, where a broken line costs only itself",
        ) from error


def _parquet(path: UPath) -> Opened:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path.open("rb"))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is no Parquet file: {error}", "write it again, or set the source's `format`"
        ) from error

    def rows() -> Iterator[Row]:
        with file:
            values = (value for batch in file.iter_batches(_BATCH_ROWS) for value in batch.to_pylist())
            yield from (Row(number, value) for number, value in enumerate(values, 1))

    return Opened("parquet", "", rows(), tuple(file.schema_arrow.names))


def _dataset(path: UPath, split: str) -> Opened:
    """A folder that `datasets` saved with save_to_disk(): one data set, or several splits."""
    from finetune_pipeline.ingest.saved_dataset import open_saved

    columns, values = open_saved(path, split)
    return Opened("dataset", "", (Row(number, value) for number, value in enumerate(values, 1)), columns)
