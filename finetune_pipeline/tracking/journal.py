"""What a run has to tell MLflow, on this machine, in order, until MLflow has accepted all of it.

    journal = create("support_tickets", None, {"lora.r": 16}, {"data": "9f1c…"}, started_ms=1770000000000)
    journal.append("metrics", values={"loss": 0.31}, step=12, timestamp=1770000012345)

    <home>/tracking/<id>/run.json          experiment, parameters and tags of the run (`About`)
    <home>/tracking/<id>/records.jsonl     one record a line: metrics, tags, dataset, files, status
    <home>/tracking/<id>/files/<n>/        the files of a record
    <home>/tracking/<id>/delivered.json    how far they were delivered, to which server and run (`Place`)

A run that MLflow does not know yet has an id that begins with `local-`. It is a tag of the run in MLflow, by which the
run is found there, also from another machine. A process may be killed at any moment: what it wrote is delivered later.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetune_pipeline.errors import StorageError, reading
from finetune_pipeline.store import home, storage_error, write_atomic

LOCAL = "local-"
ENDED = ("FINISHED", "FAILED", "KILLED")
HINT = "delete the folder: the run is then missing in MLflow, and no artifact is affected"


@dataclass(frozen=True, slots=True)
class About:
    """run.json. `task`: the name of the experiment; `continues`: the run that an earlier journal began; `parent`: the
    run that this one is shown below."""

    id: str
    task: str
    params: dict[str, Any]
    tags: dict[str, str]
    started_ms: int
    continues: str | None = None
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """delivered.json. `server`: the address of MLflow, `bytes`: of records.jsonl that it has accepted, `ended`: whether
    the last of them is the end of the run."""

    server: str = ""
    run_id: str | None = None
    experiment_id: str | None = None
    bytes: int = 0
    ended: bool = False


class Journal:
    """The records of one run. Only the process that holds its lock (`own`) appends, delivers or removes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with reading(folder / "run.json", HINT):
            self.about = About(**json.loads((folder / "run.json").read_text("utf-8")))
        self.place = self.read_place()
        self._appending = threading.Lock()

    @property
    def exists(self) -> bool:
        return (self.folder / "run.json").exists()

    def is_of(self, run_id: str | None) -> bool:
        """Whether it holds records of the run with this id, MLflow's or local."""
        return run_id is not None and run_id in (self.about.id, self.about.continues, self.place.run_id)

    def append(self, kind: str, **fields: Any) -> None:
        """Add a record. StorageError when it cannot be written."""
        with self._appending:
            try:
                with self._records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"kind": kind, **fields}) + "\n")
            except OSError as error:
                raise storage_error(error, str(self._records)) from error

    def add_files(self, folder: Path, path: str) -> None:
        """Add the files of `folder`, for `path` in the run: as hard links where the file system has them, because the
        folder is moved or removed before they are delivered. StorageError when they cannot be written."""
        target = self.folder / "files" / uuid.uuid4().hex[:8]
        try:
            shutil.copytree(folder, target, copy_function=_link)
        except (OSError, shutil.Error) as error:
            raise storage_error(error if isinstance(error, OSError) else OSError(str(error)), str(target)) from error
        self.append("files", folder=target.name, path=path)

    def records(self) -> Iterator[tuple[dict[str, Any], int]]:
        """Each record that is not delivered, and the number of bytes up to its end. The rest of a line that a killed
        process did not finish is left out."""
        if not self._records.exists():
            return
        at = self.place.bytes
        with reading(self._records, HINT), self._records.open("rb") as file:
            file.seek(at)
            for line in file:
                at += len(line)
                if line.endswith(b"\n"):
                    yield json.loads(line), at

    @property
    def is_over(self) -> bool:
        """Whether its last record, delivered or not, is the end of the run."""
        ended = self.place.ended
        for record, _ in self.records():
            ended = is_end(record)
        return ended

    def reopen(self) -> None:
        """Make it ready for more records: of a run that goes on, or the end of one whose process was killed, which may
        have left a part of a line."""
        if self._records.exists():
            content = self._records.read_bytes()
            if not content.endswith(b"\n"):
                os.truncate(self._records, content.rfind(b"\n") + 1)

    @property
    def last_written_ms(self) -> int:
        """When the last record was written."""
        written = self._records if self._records.exists() else self.folder / "run.json"
        return int(written.stat().st_mtime * 1000)

    def advance(self, place: Place) -> None:
        """Record how far it is delivered."""
        write_atomic(self.folder / "delivered.json", json.dumps(asdict(place)))
        self.place = place

    def remove(self) -> None:
        """Remove it, run.json first: without that it does not exist."""
        (self.folder / "run.json").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _records(self) -> Path:
        return self.folder / "records.jsonl"

    def read_place(self) -> Place:
        file = self.folder / "delivered.json"
        with reading(file, HINT):
            return Place(**json.loads(file.read_text("utf-8"))) if file.exists() else Place()


def create(
    task: str,
    continues: str | None,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    started_ms: int,
    parent: str | None = None,
) -> Journal:
    """A new journal, for a new run or for one that an earlier journal began."""
    about = About(LOCAL + uuid.uuid4().hex, task, dict(params), dict(tags), started_ms, continues, parent)
    folder = _root() / about.id
    write_atomic(folder / "run.json", json.dumps(asdict(about), default=str))
    return Journal(folder)


def journals(damaged: Callable[[StorageError], None] = lambda error: None) -> list[Journal]:
    """All journals of this machine, the oldest first. `damaged` gets the error of each that cannot be read: it concerns
    no other run."""
    found = []
    for path in sorted(_root().glob(f"{LOCAL}*/run.json")):
        try:
            found.append(Journal(path.parent))
        except StorageError as error:
            damaged(error)
    return sorted(found, key=lambda journal: journal.about.started_ms)


def find(run_id: str | None) -> Journal | None:
    """The journal with records of this run."""
    return next((journal for journal in journals() if journal.is_of(run_id)), None)


@contextmanager
def own(journal: Journal, wait: bool = False) -> Iterator[bool]:
    """Within the block, this process alone uses the journal; False when another does (without `wait`), or when it was
    delivered and removed meanwhile. The operating system releases the lock when the process ends."""
    path = home() / "locks" / f"{journal.folder.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(path), timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        if journal.exists:
            journal.place = journal.read_place()  # another process may have delivered a part
        yield journal.exists
    finally:
        if not journal.exists:
            path.unlink(missing_ok=True)
        lock.release()


def is_end(record: Mapping[str, Any]) -> bool:
    return record["kind"] == "status" and record["status"] in ENDED


def at_server(place: Place, server: str) -> Place:
    """`place`, or the beginning where the records were delivered to another server so far."""
    return place if place.server == server else replace(Place(), server=server)


def _root() -> Path:
    return home() / "tracking"


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
    return target
