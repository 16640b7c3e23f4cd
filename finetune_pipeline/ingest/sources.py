"""The files of a declared source, and a fingerprint of all their content.

A path is relative to the task's folder, may be a glob, and may be a full URL (s3://..., any fsspec protocol). A source
that matches no file is an error, not an empty source.

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
from finetune_pipeline.ingest.examples import SourceFile
from finetune_pipeline.ingest.readers import open_rows
from finetune_pipeline.ingest.rows import OpenedFile, ReadOptions, writable
from finetune_pipeline.ingest.saved_dataset import open_hub
from finetune_pipeline.records import content_id
from finetune_pipeline.store import LOCAL, TaskStore
from finetune_pipeline.store.file_hashes import file_hash

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class File:
    """One file (or saved data set) of a source. `name` is its path as declared, or as matched by the glob: part of the
    ids, and the same on every machine."""

    path: UPath
    name: str


def located(path: str, root: UPath) -> UPath:
    """The place of a declared path: full URLs and absolute paths unchanged, others below the task's folder."""
    if "://" in path:
        return UPath(path)
    return UPath(path) if Path(path).is_absolute() else root / path


def files_of(source: Source, root: UPath) -> list[File]:
    """The files of a source with a `path`, sorted by name. DataError when there are none, or they are unreachable."""
    try:
        return _files_of(source, root)
    except (DataError, AssertionError):
        raise
    except Exception as error:
        raise DataError(
            f"the source {source.label!r} names {source.path}, which cannot be reached: {str(error) or error!r}",
            "check the address and the credentials; s3:// needs the package s3fs, other protocols their own package",
        ) from error


def _files_of(source: Source, root: UPath) -> list[File]:
    declared = source.path or ""
    if not _GLOB.search(declared):
        path = located(declared, root)
        if not path.exists():
            raise DataError(f"the source {source.label!r} names {path}, which does not exist", _hint(path, root))
        return [File(path, declared)]
    matches = _matches(declared, root)
    if not matches:
        raise DataError(
            f"the source {source.label!r} names {located(declared, root)}, and no file matches that",
            "check the pattern, or put the files there",
        )
    return matches


def _matches(declared: str, root: UPath) -> list[File]:
    fixed = _GLOB.split(declared, maxsplit=1)[0]
    head = fixed[: fixed.rfind("/") + 1]
    base = located(head, root) if head else root
    paths = sorted(base.glob(declared[len(head) :]), key=str)
    visible = [p for p in paths if not p.name.startswith(".") and not p.is_dir()]
    return [File(UPath(p), writable(head + UPath(p).path.removeprefix(base.path).lstrip("/"))) for p in visible]


def _hint(path: UPath, root: UPath) -> str:
    folder = path.parent
    names = sorted(p.name for p in folder.iterdir())[:8] if folder.exists() and folder.is_dir() else []
    there = f" (there is: {', '.join(names)})" if names else ""
    return f"put the file there{there}, or correct `sources` in {root / 'task.yaml'}"


def opened_files(source: Source, root: UPath) -> Iterator[tuple[str, OpenedFile]]:
    """(name, opened file) for every file of a source, one after the other. DataError when one cannot be read."""
    if source.hub is not None:
        yield source.hub, open_hub(source)
        return
    for file in files_of(source, root):
        yield file.name, _open(file, source)


def _open(file: File, source: Source) -> OpenedFile:
    return open_rows(file.path, source.format, ReadOptions(source.split, source.encoding))


def problems(task: Task, store: TaskStore) -> list[str]:
    """Why the sources cannot be read, a sentence each, for `finetune validate`; empty when they can.

    Files that are missing or unreadable; files without the columns they need, where no other file has them (else their
    rows are dropped with that reason: see `remarks`). Reads the beginning of each file; does not access the Hub.
    """
    unreadable, lacking, complete = _examined(task, store)
    return unreadable if complete or unreadable else lacking


def remarks(task: Task, store: TaskStore) -> list[str]:
    """Files of which every row will be dropped, since they lack columns that other files have; a sentence each."""
    _, lacking, complete = _examined(task, store)
    return lacking if complete else []


def missing(task: Task, root: UPath) -> list[str]:
    """The declared files that do not exist, a sentence each. Opens none of them."""
    messages: list[str] = []
    for source in task.sources:
        try:
            _ = [] if source.hub else files_of(source, root)
        except DataError as error:
            messages.append(error.message)
    return messages


def _examined(task: Task, store: TaskStore) -> tuple[list[str], list[str], int]:
    """(messages about unreadable files, messages about files that lack columns, how many files have none of these)."""
    unreadable: list[str] = []
    lacking: list[str] = []
    complete = 0
    for number, source in enumerate(task.sources):
        key = f"sources.{number} ({source.label})"
        try:
            for file in [] if source.hub else files_of(source, store.root):
                problem = SourceFile(file.name, source, _open(file, source), task.answer).problem
                lacking += [f"{key}: {file.name} {problem}"] if problem else []
                complete += not problem
        except DataError as error:
            unreadable.append(f"{key}: {error.message} ({error.hint})")
        complete += source.hub is not None
    return unreadable, lacking, complete


def fingerprint(task: Task, root: UPath) -> str:
    """Hash of the content of all sources: names and bytes of local files, the version that an object store reports for
    an object, the pinned revision of a Hub data set. Never fails: a missing file has a fingerprint too."""
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
        folder = file.path.is_dir()  # a data set saved by `datasets`
        for path in sorted(file.path.rglob("*"), key=str) if folder else [file.path]:
            if not path.is_dir():
                yield f"{file.name}/{UPath(path).path.removeprefix(file.path.path)}"
                yield _content_version(UPath(path))


def _content_version(path: UPath) -> str:
    if path.protocol not in LOCAL:
        return str(path.fs.ukey(path.path))  # an object store versions its objects: no need to download them
    try:
        return file_hash(Path(str(path)))
    except OSError as error:
        return f"unreadable: {error.errno}"
