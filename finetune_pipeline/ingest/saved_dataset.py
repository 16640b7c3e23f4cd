"""Rows of a folder that `datasets` saved (save_to_disk), and of a data set on the Hub.

A saved folder is Arrow files and a state.json that lists them, which pyarrow reads as they are: importing `datasets`
takes seconds, and is left to the Hub. Class labels, kept as numbers, become their names.

    columns, rows = open_saved(UPath("raw/saved"), "train")
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from upath import UPath

from finetune_pipeline.config import Source
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.arrow_rows import BATCH_ROWS, arrow_rows
from finetune_pipeline.ingest.rows import Row, Rows


def open_saved(path: UPath, split: str) -> tuple[tuple[str, ...], Rows]:
    """Columns and rows; of `split`, where there are several. DataError when it is not complete."""
    splits = path / "dataset_dict.json"
    try:
        if splits.exists():
            names = json.loads(splits.read_text("utf-8"))["splits"]
            if split not in names:
                raise DataError(
                    f"{path} has no split {split!r}", f"set the source's `split` to one of {', '.join(names)}"
                )
            path = path / split
        files = [
            path / file["filename"] for file in json.loads((path / "state.json").read_text("utf-8"))["_data_files"]
        ]
        features = json.loads((path / "dataset_info.json").read_text("utf-8"))["features"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no folder that `datasets` saved: {error}", "write it with save_to_disk()"
        ) from error
    names = _names(features)
    return tuple(features), Rows(lambda: _named(_batches(files), names))


def _batches(files: Sequence[UPath]) -> Iterator[Any]:
    import pyarrow as pa

    for path in files:
        with path.open("rb") as file, pa.ipc.open_stream(file) as batches:
            yield from batches


def _names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The names of each column of class labels."""
    plain = {name: field for name, field in features.items() if isinstance(field, Mapping)}
    return {name: field["names"] for name, field in plain.items() if field.get("_type") == "ClassLabel"}


def _named(batches: Iterable[Any], names: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """The rows of Arrow batches with the names of their class labels; one that is not given (-1, or null) is absent."""
    for row in arrow_rows(batches):
        yield row if row.problem else replace(row, value={**row.value, **_labels(row.value, names)})


def _labels(value: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    given = ((name, known, value[name]) for name, known in names.items())
    return {name: known[at] if at is not None and 0 <= at < len(known) else None for name, known, at in given}


def open_hub(source: Source) -> tuple[tuple[str, ...], Rows]:
    """Columns and rows of a Hub data set at its pinned revision. DataError when it cannot be loaded."""
    import datasets

    try:
        found = datasets.load_dataset(str(source.hub), revision=source.revision, split=source.split)
    except (OSError, ValueError, RuntimeError) as error:  # its own errors and those of its HTTP client are among these
        raise DataError(
            f"cannot load {source.hub} (split {source.split!r}) from the Hub: {error}",
            "check name, revision, split and network; or save it once with save_to_disk(), and declare that folder",
        ) from error
    names = _names(found.features.to_dict())
    tables = found.with_format("arrow")

    def rows() -> Iterator[Row]:
        return _named((batch for table in tables.iter(BATCH_ROWS) for batch in table.to_batches()), names)

    return tuple(found.column_names), Rows(rows)
