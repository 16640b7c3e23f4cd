"""Rows of Arrow batches, which come from Parquet files, from folders saved by `datasets`, and from the Hub.

    list(arrow_rows([batch]))                           # [Row(1, {"text": "where is it?", "label": "delivery"}), ...]
    open_parquet(UPath("a.parquet"), ReadOptions())     # OpenedFile(format="parquet", columns=("text", "label"), ...)

A value that Python cannot hold (bytes that are not valid UTF-8, a date in the year 5 million) drops only its own row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.rows import OpenedFile, ReadOptions, Row, Rows, check_unique

BATCH_ROWS = 1024  # read at a time, where the file does not set a batch size


def open_parquet(path: UPath, options: ReadOptions) -> OpenedFile:
    """Open a Parquet file. DataError when it is not one, or has two columns of the same name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path.open("rb")) as file:
            columns = tuple(file.schema_arrow.names)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{path} is no Parquet file: {error}", "write it again, or set the source's `format`"
        ) from error
    check_unique(path, columns, "write it again with one of them renamed")

    def rows() -> Iterator[Row]:
        with pq.ParquetFile(path.open("rb")) as file:
            yield from arrow_rows(file.iter_batches(BATCH_ROWS))

    return OpenedFile("parquet", "", Rows(rows), columns)


def arrow_rows(batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of pyarrow record batches, numbered from 1."""
    number = 1
    for batch in batches:
        yield from _batch_rows(batch, number)
        number += batch.num_rows


def _batch_rows(batch: Any, first: int) -> Iterator[Row]:
    """The rows of a batch, numbered from `first`; converted one by one only if the batch has an unreadable value."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for i in range(batch.num_rows):
            yield _row(batch.slice(i, 1), first + i)
        return
    yield from (Row(first + i, value) for i, value in enumerate(values))


def _row(batch: Any, number: int) -> Row:
    try:
        return Row(number, batch.to_pylist()[0])
    except (ValueError, OverflowError) as error:
        return Row(number, {"": f"row {number}"}, "malformed-row", f"a value is not readable: {type(error).__name__}")
