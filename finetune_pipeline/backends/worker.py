"""The job's side: read the description, tell events, stop in good order when asked to.

    def run(spec: dict, report: Reporter) -> dict: ...
    if __name__ == "__main__":
        worker.main(work)

SIGTERM sets a flag that `report.alive()` turns into JobCancelled, so that a training reaches its checkpoint. The job
does the same when its parent dies, however it dies and however early; if it hangs then, it ends itself the hard way.

One job computes at a time on this machine: two that share the cores (or a GPU) would both take more than twice as long.
The job holds the lock, not who started it: the job of a run that was killed still computes until it looks at its flag,
and the next run of the task would write into the same folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.progress import GRACE_SECONDS, while_active
from finetune_pipeline.errors import FinetuneError, JobCancelled
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import machine_lock

LOOK_SECONDS = 0.5  # how often a process looks whether its parent is still there


class EventFile:
    """A reporter that appends one JSON object a line to a file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._last: dict[str, float] = {}
        self.cancelled = False

    def tell(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")
        self._file.flush()

    def log(self, text: str) -> None:
        self.tell("log", text=text)

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        now = time.monotonic()
        if done >= total or now - self._last.get(what, 0.0) > 0.5:
            self._last[what] = now
            self.tell("progress", what=what, done=done, total=total, figures=figures)

    def alive(self) -> None:
        if self.cancelled:
            raise JobCancelled("stopped on request", "run again to go on from the last checkpoint")


def main(run: Callable[[dict[str, Any], Reporter], dict[str, Any]]) -> None:
    """Run `run` on the description named on the command line, and end with the process named behind it (default: who
    started this one); exit with its error's code."""
    path, parent = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair: it ends us in good order
    if os.getppid() != parent:
        sys.exit(JobCancelled.exit_code)  # and not a word: description and events may be another run's by now
    events = EventFile(path.with_name("events.jsonl"))
    signal.signal(signal.SIGTERM, lambda *_: setattr(events, "cancelled", True))
    end_with(parent)
    try:
        spec = json.loads(path.read_text("utf-8"))  # its own: the next run may put another there while this one waits
        with machine_lock("compute", events, "another job is computing on this machine; waiting for it"):
            events.alive()
            result = run(spec, events)
    except FinetuneError as error:
        events.tell("error", type=type(error).__name__, message=error.message, hint=error.hint)
        sys.exit(error.exit_code)
    events.tell("result", result=result)


def end_with(parent: int) -> None:
    """Send this process SIGTERM when `parent`, which started it, has ended; and SIGKILL to its group (itself, if it
    leads none) when it then does nothing for GRACE_SECONDS. Watched by a thread, since only Linux tells."""
    threading.Thread(target=_watch, args=(parent, GRACE_SECONDS), daemon=True).start()


def _watch(parent: int, grace: float) -> None:
    own = os.getpid()
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    os.kill(own, signal.SIGTERM)
    while_active(own, grace, grace / 6)  # to look costs processor time as well
    if os.getpgid(0) == own:
        os.killpg(own, signal.SIGKILL)
    os.kill(own, signal.SIGKILL)
