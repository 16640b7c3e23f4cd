"""Source formats: the table of them, how a file's format is recognized, and how a file is opened.

    opened = open_rows(UPath("raw/tickets.csv"))  # OpenedFile(format="csv", encoding="utf-8", columns=("message", ...))
    next(iter(opened.rows))                       # Row(line=2, value={"message": "where is it?", ...})

To add a format, write a function from (path, ReadOptions) to OpenedFile, add a line to FORMATS, and add the name to
`format` in config/sources.py. A row that cannot be read is still a row (`Row.problem` has the reason), so that none is
skipped. Files are streamed, except JSON files, which are in memory as text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from upath import UPath

from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.arrow_rows import open_parquet
from finetune_pipeline.ingest.csv_reader import open_csv
from finetune_pipeline.ingest.encoding import HEAD_BYTES, of_head
from finetune_pipeline.ingest.json_reader import is_array, is_json_lines, open_json, open_jsonl
from finetune_pipeline.ingest.rows import OpenedFile, ReadOptions, Row, Rows
from finetune_pipeline.ingest.saved_dataset import is_saved, open_dataset

_DEFAULTS = ReadOptions()
_PACKED = {
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV (UTF-8)"),
    b"\x1f\x8b": ("compressed (gzip)", "unpack it first: gunzip"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV (UTF-8)"),
}


@dataclass(frozen=True, slots=True)
class FileStart:
    """The beginning of a file: its first 64 KiB as bytes, and as text without leading space. Empty for a folder."""

    path: UPath
    head: bytes = b""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Format:
    """A source format. `open` returns the opened file; `endings` are the file-name endings, in lower case.

    `recognize(start, named)` is whether a file has this format; `named` is whether its name has one of the endings.
    `folder`: the format is a folder. `packed`: its files begin like an archive, which is an error for other formats.
    """

    name: str
    open: Callable[[UPath, ReadOptions], OpenedFile]
    endings: tuple[str, ...] = ()
    recognize: Callable[[FileStart, bool], bool] = lambda start, named: named
    folder: bool = False
    packed: bool = False


FORMATS: tuple[Format, ...] = (  # formats whose ending the file has are tried first, then the others in this order
    Format("csv", open_csv, (".csv", ".tsv")),
    Format("parquet", open_parquet, (".parquet",), lambda start, named: named or start.head.startswith(b"PAR1")),
    Format(
        "jsonl",
        open_jsonl,
        (".jsonl", ".ndjson"),
        lambda start, named: not is_array(start.text) if named else is_json_lines(start.text),
    ),
    Format(  # without endings: a file named .json may hold JSON Lines, so that the content decides
        "json",
        open_json,
        (),
        lambda start, named: start.text.startswith(("{", "[")) or start.path.suffix.lower() == ".json",
    ),
    Format("dataset", open_dataset, (), lambda start, named: is_saved(start.path), folder=True),
)


def open_rows(
    path: UPath, declared: str = "auto", options: ReadOptions = _DEFAULTS, formats: Sequence[Format] = FORMATS
) -> OpenedFile:
    """Open a file in its declared format (`auto`: recognized by name and content).

    DataError names the file and has a hint; it is raised here, or when the rows are read.
    """
    with _named_errors(path):
        by_name = {known.name: known for known in formats}
        file_format = recognize(path, formats) if declared == "auto" else by_name[declared]
        opened = file_format.open(path, options)
    return replace(opened, rows=Rows(partial(_guarded, path, opened.rows)))


def _guarded(path: UPath, rows: Iterable[Row]) -> Iterator[Row]:
    with _named_errors(path):
        yield from rows


@contextmanager
def _named_errors(path: UPath) -> Iterator[None]:
    """Errors of the operating system, of a codec and of Arrow become a DataError that names the file."""
    try:
        yield
    except (OSError, UnicodeError, _arrow_error()) as error:
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"cannot read {path}: {why}", "check that the file is complete and readable") from error


def _arrow_error() -> type[Exception]:
    """The base class of pyarrow's errors; OSError where pyarrow is not imported, which stays so."""
    arrow = sys.modules.get("pyarrow")
    return arrow.ArrowException if arrow else OSError


def recognize(path: UPath, formats: Sequence[Format] = FORMATS) -> Format:
    """The format of a file or folder. DataError for one that is no known data file."""
    if path.is_dir():
        start = FileStart(path)
        for known in formats:
            if known.folder and known.recognize(start, False):
                return known
        raise DataError(
            f"{path} is a folder, but not one that `datasets` saved",
            f"name its files, e.g. `path: {path.name}/*.jsonl`",
        )
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    start = FileStart(path, head, head.decode(of_head(head) or "utf-8-sig", "replace").lstrip())
    file_format = _recognized(start, [known for known in formats if not known.folder])
    packed = next((note for mark, note in _PACKED.items() if head.startswith(mark)), None)
    if packed is not None and (file_format is None or not file_format.packed):
        raise DataError(f"{path} is {packed[0]}", packed[1])
    if file_format is None:
        *names, last = [known.name for known in formats if not known.folder]
        raise DataError(f"{path} has no known format", f"set the source's `format` to {', '.join(names)} or {last}")
    return file_format


def _recognized(start: FileStart, formats: Sequence[Format]) -> Format | None:
    suffix = start.path.suffix.lower()
    by_ending = sorted(formats, key=lambda known: suffix not in known.endings)  # stable: the table's order otherwise
    return next((known for known in by_ending if known.recognize(start, suffix in known.endings)), None)
