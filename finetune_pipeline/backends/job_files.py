"""The files of a job's folder, which are the only way between a job and its parent, on one machine or on several.

    job.json          the description, an object of the job's JobData
    events.jsonl      the events of rank 0 (backends/events.py); events-3.jsonl: the error of rank 3
    output.log        what its processes print; output-<host>-<pid>.log: of a machine that the parent did not start
    launch.json       torchrun, Ray, Kubernetes: what each node starts (backends/node.py)
    cancel            exists once the job is to stop
    failed            exists once another start would not help: a rank has raised an error, or died too often
    given-up          exists once a machine has given up, so that the others do not wait for it
    ending            a machine touches it while its processes end after a cancellation
    alive             its parent touches it while it waits for the job
    alive-<host>      a machine that the parent did not start touches it while it works for the job

A folder on a volume that all machines share is enough for all of this: no port, no server, no credentials.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.events import ErrorEvent, Event, from_line


@dataclass(frozen=True)
class JobFiles:
    folder: Path

    @property
    def description(self) -> Path:
        return self.folder / "job.json"

    @property
    def output(self) -> Path:
        return self.folder / "output.log"

    @property
    def launch(self) -> Path:
        return self.folder / "launch.json"

    @property
    def cancel(self) -> Path:
        return self.folder / "cancel"

    @property
    def failed(self) -> Path:
        return self.folder / "failed"

    @property
    def given_up(self) -> Path:
        return self.folder / "given-up"

    @property
    def ending(self) -> Path:
        return self.folder / "ending"

    @property
    def alive(self) -> Path:
        return self.folder / "alive"

    def alive_on(self, host: str) -> Path:
        return self.folder / f"alive-{host}"

    def hosts(self) -> list[str]:
        """The other machines that have begun."""
        return [path.name.removeprefix("alive-") for path in sorted(self.folder.glob("alive-*"))]

    def events(self, rank: int = 0) -> Path:
        return self.folder / (f"events-{rank}.jsonl" if rank else "events.jsonl")

    def prepare(self, spec: dict[str, Any]) -> None:
        """Write the description, and new files for events and output: the job of a killed run may still append to the
        old ones. The output is private: it may contain rows."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.description.write_text(json.dumps(spec, ensure_ascii=False), "utf-8")
        for file in (*self.folder.glob("events*.jsonl"), *self.folder.glob("output*.log")):
            file.unlink(missing_ok=True)
        self.events().touch()
        os.close(os.open(self.output, os.O_WRONLY | os.O_CREAT, 0o600))

    def write_launch(self, launch: dict[str, Any]) -> None:
        self.launch.write_text(json.dumps(launch), "utf-8")

    def stops(self) -> bool:
        """Whether the job is to stop: it was canceled, or its folder is gone, because another run began."""
        return self.cancel.exists() or not self.description.exists()

    def restarts(self) -> int:
        """How often the job was started before, as far as its rank 0 came here; called by rank 0 alone, once."""
        count = self.folder / "starts"
        number = int(count.read_text("ascii")) if count.exists() else 0
        count.write_text(str(number + 1), "ascii")
        return number

    def errors(self) -> list[ErrorEvent]:
        """The errors of all ranks; those before a cancellation, which they may have caused, come first."""
        found = [e for file in sorted(self.folder.glob("events*.jsonl")) for e in _events(file)]
        return sorted((e for e in found if isinstance(e, ErrorEvent)), key=lambda error: error.type == "JobCanceled")

    def tail(self, lines: int = 15) -> str:
        """The last lines that the job printed, on each machine."""
        return "\n".join(_tail(file, lines) for file in sorted(self.folder.glob("output*.log")))


def _events(file: Path) -> Iterable[Event]:
    return filter(None, map(from_line, file.read_text("utf-8").splitlines()))


def _tail(path: Path, lines: int) -> str:
    return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])


def untouched(path: Path, seconds: float) -> Callable[[], bool]:
    """A function that tells whether the file was not touched for `seconds`. By this machine's clock alone: that of the
    machine which touches it may differ."""
    last, since = 0.0, time.monotonic()

    def asked() -> bool:
        nonlocal last, since
        touched = path.stat().st_mtime if path.exists() else -1.0
        if touched != last:
            last, since = touched, time.monotonic()
        return time.monotonic() - since > seconds

    return asked
