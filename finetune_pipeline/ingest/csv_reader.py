"""The reader of CSV and TSV files: a header line, then one row a record.

opened = open_csv(UPath("raw/tickets.csv"), ReadOptions())     # columns=("message", "intent"), encoding="utf-8"
next(iter(opened.rows))                                        # Row(line=2, value={"message": "where is it?", ...})
"""

from __future__ import annotations

from collections.abc import Iterator

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest import csv_records
from finetune_pipeline.ingest.encoding import LongLine, encoding_of, lines, open_text
from finetune_pipeline.ingest.rows import OpenedFile, ReadOptions, Row, Rows, check_unique, too_long


def open_csv(path: UPath, options: ReadOptions) -> OpenedFile:
    """Open a CSV file; the delimiter is the header's, a tab for `.tsv`. DataError for an unusable header."""
    encoding = encoding_of(path, options.encoding)
    with open_text(path, encoding) as file:
        header_line = next((line for line in lines(file) if line.strip()), "")
    if isinstance(header_line, LongLine):
        raise DataError(f"{path} begins with a line of millions of characters", "write its columns into the first line")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else csv_records.delimiter_of(header_line)
    header = next((record for record in _records(path, encoding, delimiter) if record.fields), None)
    if header and header.problem:
        raise DataError(f"the header of {path} cannot be read: {header.problem}", "fix the quotes in its first line")
    columns = tuple(name.strip() for name in header.fields) if header else ()
    check_unique(path, columns, "rename one of them in its first line")

    def rows() -> Iterator[Row]:
        records = _records(path, encoding, delimiter)
        next((record for record in records if record.fields), None)  # the header
        yield from (_row(record, columns) for record in records)

    return OpenedFile("csv", encoding, Rows(rows), tuple(name for name in columns if name))


def _records(path: UPath, encoding: str, delimiter: str) -> Iterator[csv_records.Record]:
    with open_text(path, encoding) as file:
        yield from csv_records.records(lines(file), delimiter)


def _row(record: csv_records.Record, columns: tuple[str, ...]) -> Row:
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
