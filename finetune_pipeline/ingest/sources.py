"""Which files a declared source means, and a cheap fingerprint of them all.

A path is relative to the task's folder, may be a glob, and may be a full URL (s3://..., anything fsspec knows). A
source that names nothing that is there is an error, never an empty source.

What it is not: the reading of a file (readers.py).

    files_of(Source(path="raw/*.jsonl"), root)     # [File(path=.../raw/a.jsonl, name="raw/a.jsonl"), ...]
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from finetune_pipeline.config import Source, Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.ingest.examples import Reading
from finetune_pipeline.ingest.readers import Opened, open_rows
from finetune_pipeline.ingest.rows import writable
from finetune_pipeline.ingest.saved_dataset import open_hub
from finetune_pipeline.records import content_id
from finetune_pipeline.store import LOCAL, TaskStore
from finetune_pipeline.store.file_hashes import file_hash

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class File:
    """One file (or saved data set) of a source. `name` is how it was declared, or found by the glob: part of the ids,
    the same on every machine."""

    path: UPath
    name: str


def located(path: str, root: UPath) -> UPath:
    """A declared path as a place: full URLs and absolute paths as they are, others below the task's folder."""
    if "://" in path:
        return UPath(path)
    return UPath(path) if Path(path).is_absolute() else root / path


def files_of(source: Source, root: UPath) -> list[File]:
    """The files of a source with a `path`, in order of name. DataError when there are none, or nobody can be asked."""
    try:
        return _files_of(source, root)
    except (DataError, AssertionError):
        raise
    except Exception as error:
        raise DataError(
            f"the source {source.label!r} names {source.path}, which cannot be reached: {str(error) or error!r}",
            "check the address and the credentials; s3:// needs the package s3fs, other places their own",
        ) from error


def _files_of(source: Source, root: UPath) -> list[File]:
    declared = source.path or ""
    if not _GLOB.search(declared):
        path = located(declared, root)
        if not path.exists():
            raise DataError(f"the source {source.label!r} names {path}, which does not exist", _hint(path, root))
        return [File(path, declared)]
    found = _matches(declared, root)
    if not found:
        raise DataError(
            f"the source {source.label!r} names {located(declared, root)}, and no file matches that",
            "check the pattern, or put the files there",
        )
    return found


def _matches(declared: str, root: UPath) -> list[File]:
    fixed = _GLOB.split(declared, maxsplit=1)[0]
    head = fixed[: fixed.rfind("/") + 1]
    base = located(head, root) if head else root
    paths = sorted(base.glob(declared[len(head) :]), key=str)
    visible = [p for p in paths if not p.name.startswith(".") and not p.is_dir()]
    return [File(UPath(p), writable(head + UPath(p).path.removeprefix(base.path).lstrip("/"))) for p in visible]


def _hint(path: UPath, root: UPath) -> str:
    beside = path.parent
    names = sorted(p.name for p in beside.iterdir())[:8] if beside.exists() and beside.is_dir() else []
    there = f" (there is: {', '.join(names)})" if names else ""
    return f"put the file there{there}, or correct `sources` in {root / 'task.yaml'}"


def opened_files(source: Source, root: UPath) -> Iterator[tuple[str, Opened]]:
    """Every file of a source, opened one after the other. DataError when one cannot be read."""
    if source.hub is not None:
        columns, rows = open_hub(source)
        yield source.hub, Opened("dataset", "", rows, columns)
        return
    for file in files_of(source, root):
        yield file.name, open_rows(file.path, source.format, source.split, source.encoding)


def problems(task: Task, store: TaskStore) -> list[str]:
    """What a quick look finds wrong with the sources, so that they could not be read: for `finetune validate`.

    Files that are missing or unreadable; files without the columns they need, where no other file has them (else their
    rows are dropped with that reason: see `remarks`). Reads the beginning of each file; asks no Hub.
    """
    broken, unfit, fitting = _looked_at(task, store)
    return broken if fitting or broken else unfit


def remarks(task: Task, store: TaskStore) -> list[str]:
    """What will be dropped as a whole: files without the columns they need, beside others that are right."""
    _, unfit, fitting = _looked_at(task, store)
    return unfit if fitting else []


def missing(task: Task, root: UPath) -> list[str]:
    """The declared files that are not there, a sentence each. Opens none of them."""
    found: list[str] = []
    for source in task.sources:
        try:
            _ = [] if source.hub else files_of(source, root)
        except DataError as error:
            found.append(error.message)
    return found


def _looked_at(task: Task, store: TaskStore) -> tuple[list[str], list[str], int]:
    """Complaints about broken and about unfit files, and how many files can be read."""
    broken: list[str] = []
    unfit: list[str] = []
    fitting = 0
    for number, source in enumerate(task.sources):
        key = f"sources.{number} ({source.label})"
        try:
            for file in [] if source.hub else files_of(source, store.root):
                opened = open_rows(file.path, source.format, source.split, source.encoding)
                complaint = Reading(file.name, source, opened, task.answer).complaint
                unfit += [f"{key}: {file.name} {complaint}"] if complaint else []
                fitting += not complaint
        except DataError as error:
            broken.append(f"{key}: {error.message} ({error.hint})")
        fitting += source.hub is not None
    return broken, unfit, fitting


def fingerprint(task: Task, root: UPath) -> str:
    """Hash of all that the sources hold: names and bytes of files, what an object store says of an object, the pinned
    revision of a Hub data set. A file that is missing has a fingerprint too: reading it is what fails, not asking."""
    return content_id(*(part for source in task.sources for part in _source_parts(source, root)))


def _source_parts(source: Source, root: UPath) -> Iterator[str]:
    yield source.label
    if source.hub is not None:
        yield f"{source.hub}@{source.revision}:{source.split}"
        return
    try:
        files = files_of(source, root)
    except DataError:
        yield "missing"
        return
    for file in files:
        folder = file.path.is_dir()  # a data set that `datasets` saved
        for path in sorted(file.path.rglob("*"), key=str) if folder else [file.path]:
            if not path.is_dir():
                yield f"{file.name}/{UPath(path).path.removeprefix(file.path.path)}"
                yield _state(UPath(path))


def _state(path: UPath) -> str:
    if path.protocol not in LOCAL:
        return str(path.fs.ukey(path.path))  # an object store knows its objects' versions: no need to fetch them
    try:
        return file_hash(Path(str(path)))
    except OSError as error:
        return f"unreadable: {error.errno}"
