"""Rows of a folder saved by `datasets` (save_to_disk), and of a data set on the Hub.

A saved folder holds Arrow files and a state.json that lists them. pyarrow reads them directly: importing `datasets`
takes seconds, and is done only for the Hub. Class labels, stored as numbers, are replaced by their names.

    opened = open_dataset(UPath("raw/saved"), ReadOptions(split="train"))
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
from finetune_pipeline.ingest.rows import OpenedFile, ReadOptions, Row, Rows

_DATASET_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")


def is_saved(path: UPath) -> bool:
    """Whether a folder was saved by `datasets`."""
    return any((path / name).exists() for name in _DATASET_FILES)


def open_dataset(path: UPath, options: ReadOptions) -> OpenedFile:
    """Open a saved folder: one data set, or one split of several. DataError when it is not complete."""
    splits = path / "dataset_dict.json"
    try:
        if splits.exists():
            available = json.loads(splits.read_text("utf-8"))["splits"]
            if options.split not in available:
                raise DataError(
                    f"{path} has no split {options.split!r}",
                    f"set the source's `split` to one of {', '.join(available)}",
                )
            path = path / options.split
        state = json.loads((path / "state.json").read_text("utf-8"))
        files = [path / file["filename"] for file in state["_data_files"]]
        features = json.loads((path / "dataset_info.json").read_text("utf-8"))["features"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no folder that `datasets` saved: {error}", "write it with save_to_disk()"
        ) from error
    names = _label_names(features)
    return OpenedFile("dataset", "", Rows(lambda: _named_rows(_batches(files), names)), tuple(features))


def open_hub(source: Source) -> OpenedFile:
    """Open a Hub data set at its pinned revision. DataError when it cannot be loaded."""
    import datasets

    try:
        loaded = datasets.load_dataset(str(source.hub), revision=source.revision, split=source.split)
    except (OSError, ValueError, RuntimeError) as error:  # the base classes of its errors and of its HTTP client's
        raise DataError(
            f"cannot load {source.hub} (split {source.split!r}) from the Hub: {error}",
            "check name, revision, split and network; or save it once with save_to_disk(), and declare that folder",
        ) from error
    names = _label_names(loaded.features.to_dict())
    tables = loaded.with_format("arrow")

    def rows() -> Iterator[Row]:
        return _named_rows((batch for table in tables.iter(BATCH_ROWS) for batch in table.to_batches()), names)

    return OpenedFile("dataset", "", Rows(rows), tuple(loaded.column_names))


def _batches(files: Sequence[UPath]) -> Iterator[Any]:
    import pyarrow as pa

    for path in files:
        with path.open("rb") as file, pa.ipc.open_stream(file) as batches:
            yield from batches


def _label_names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """For each column of class labels, the names by number."""
    plain = {name: field for name, field in features.items() if isinstance(field, Mapping)}
    return {name: field["names"] for name, field in plain.items() if field.get("_type") == "ClassLabel"}


def _named_rows(batches: Iterable[Any], names: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """The rows of Arrow batches with class labels as names; an unknown label (-1 or null) is None."""
    for row in arrow_rows(batches):
        yield row if row.problem else replace(row, value={**row.value, **_labels(row.value, names)})


def _labels(value: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, str | None]:
    numbers = ((name, known, value[name]) for name, known in names.items())
    return {name: known[n] if n is not None and 0 <= n < len(known) else None for name, known, n in numbers}
