"""The traffic log: a line per request, with the version that answered it. `monitor/` reads it.

    <home>/traffic/support_tickets/2026-01-05.jsonl
    {"at": "2026-01-05T10:00:00.123+00:00", "request": "chatcmpl-…", "task": "support_tickets",
     "model": "support_tickets", "version": 4, "adapter": "9be0…", "status": "ok", "valid": true, "seconds": 0.61,
     "first_token_seconds": 0.07, "prompt_tokens": 141, "completion_tokens": 21, "key": "shop", "stream": false,
     "prompt": "where is my parcel? <EMAIL>", "completion": "…", "code": null, "queued_seconds": 0.02}

Requests without an answer have a line too: `abandoned` (the client disconnected), `refused` (4xx, with the error's
code; in the folder `_refused` when the request names no served model), and `error`. Requests without a valid key have
none: they are only counted in the metrics, since anyone could fill the disk with them.

Prompts and completions are masked (clean/pii.py), or absent with `serve.log_text: false`. The pipeline's own requests
(parity, the sample of a deployment) are no traffic: they go to the folder `checks` beside, so that monitoring does not
take them for drift. Log files have mode 0600.

A thread masks and writes the lines, so that no response waits for the disk. When the disk is full, or the thread is too
slow, lines are lost; they are counted (`finetune_traffic_lines_lost_total`) and reported in the process's log.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import queue
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from finetune_pipeline.records import dumps
from finetune_pipeline.store import traffic_folder

Status = Literal["ok", "invalid", "fallback", "rejected", "error", "abandoned", "refused"]
MAX_QUEUED_LINES = 10_000
PURPOSE_HEADER = "x-finetune-purpose"  # marks a request of the pipeline itself
log = logging.getLogger("finetune.traffic")


@dataclass(frozen=True, slots=True)
class Line:
    """One request. `valid` is None where the task declares no format to check; `version` 0 is the base model; `code`
    is that of the error; `queued_seconds` is how long it waited for a slot in the engine (None: it was not submitted);
    `first_token_seconds` is None when nothing was generated."""

    at: str
    request: str
    task: str
    model: str
    version: int
    adapter: str
    status: Status
    valid: bool | None
    seconds: float
    first_token_seconds: float | None
    prompt_tokens: int
    completion_tokens: int
    key: str
    stream: bool
    prompt: str | None
    completion: str | None
    code: str | None = None
    queued_seconds: float | None = None


class TrafficLog:
    """Writes lines in the background. `lost` is called with the number of lines that were not written."""

    def __init__(self, lost: Callable[[int], None]) -> None:
        self._lost = lost
        self._last_warning = 0.0
        self._queue: queue.Queue[tuple[Path, Line] | None] = queue.Queue(MAX_QUEUED_LINES)
        self._thread = threading.Thread(target=self._run, name="traffic-log", daemon=True)
        self._thread.start()

    def add(self, line: Line, is_check: bool) -> None:
        """Queue a line; does not wait."""
        no_task = "_base" if line.model else "_refused"  # the name of a task does not begin with _
        folder = traffic_folder(line.task or no_task)
        target = (folder / "checks" if is_check else folder) / f"{line.at[:10]}.jsonl"
        try:
            self._queue.put_nowait((target, line))
        except queue.Full:
            self._lost(1)
            self._warn(f"more than {MAX_QUEUED_LINES} lines are queued")

    def flush(self, stalled: float = 5.0) -> bool:
        """Wait until all queued lines are written; False when no line was written for `stalled` seconds."""
        left, since = self._queue.unfinished_tasks, time.monotonic()
        while self._queue.unfinished_tasks and time.monotonic() - since < stalled:
            time.sleep(0.005)
            if self._queue.unfinished_tasks != left:
                left, since = self._queue.unfinished_tasks, time.monotonic()
        return not self._queue.unfinished_tasks

    def close(self, stalled: float = 5.0) -> None:
        """Write all queued lines, and end the thread; lines are lost when none was written for `stalled` seconds."""
        if not self.flush(stalled):
            lines = self._queue.unfinished_tasks
            self._lost(lines)
            log.error("%s lines of the traffic log are lost: none was written for %s s", lines, stalled)
            return  # the thread is blocked in a write
        self._queue.put_nowait(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            path, line = item
            try:
                append(path, masked(line))
            except OSError as error:
                self._lost(1)
                self._warn(f"cannot write {path}: {error.strerror or error}")
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _warn(self, what: str) -> None:
        """Log at most once a minute: the metric counts every line."""
        if time.monotonic() - self._last_warning > 60 or not self._last_warning:
            self._last_warning = time.monotonic()
            log.error("lines of the traffic log are lost: %s; requests are answered all the same", what)


def masked(line: Line) -> dict[str, Any]:
    """The line as it is written: personal data in prompt and completion is masked."""
    from finetune_pipeline.clean.pii import mask

    texts = {name: mask(text)[0] for name in ("prompt", "completion") if (text := getattr(line, name)) is not None}
    return asdict(line) | texts


def append(path: Path, row: dict[str, Any]) -> None:
    """Append one line with one write, so that lines of several processes never mix. A partly written line is removed
    again. OSError when the line was not written."""
    raw = (dumps(row) + "\n").encode("utf-8", "backslashreplace")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with private(path, "ab") as file:
        written = file.write(raw) or 0
        if written < len(raw):
            end = file.tell()
            if file.seek(0, os.SEEK_END) == end:
                file.truncate(end - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def private(path: Path, mode: Literal["ab", "wb"]) -> io.FileIO:
    """The file, opened for unbuffered writing, with mode 0600 even if it existed with another mode."""
    file = io.FileIO(path, mode.removesuffix("b"), opener=lambda name, flags: os.open(name, flags, 0o600))
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) != 0o600 and status.st_uid == os.geteuid():
        os.fchmod(file.fileno(), 0o600)
    return file
