"""Rows of Arrow batches: of Parquet files, of folders that `datasets` saved, of data sets on the Hub.

    list(arrow_rows([batch]))      # [Row(1, {"text": "where is it?", "label": "delivery"}), ...]

A value that Python cannot hold (bytes that are no text, a date of the year 5 million) costs its own row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from finetune_pipeline.ingest.rows import Row

BATCH_ROWS = 1024  # read at a time, where the file does not say


def arrow_rows(batches: Iterable[Any]) -> Iterator[Row]:
    """The rows of pyarrow record batches, counted from 1."""
    number = 1
    for batch in batches:
        yield from _rows(batch, number)
        number += batch.num_rows


def _rows(batch: Any, number: int) -> Iterator[Row]:
    """The rows of a batch, the first with this number; one by one only where a value is none that Python can hold."""
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError):
        for at in range(batch.num_rows):
            yield _row(batch.slice(at, 1), number + at)
        return
    yield from (Row(number + at, value) for at, value in enumerate(values))


def _row(batch: Any, number: int) -> Row:
    try:
        return Row(number, batch.to_pylist()[0])
    except (ValueError, OverflowError) as error:
        return Row(number, {"": f"row {number}"}, "malformed-row", f"a value is not readable: {type(error).__name__}")
