"""Peak memory while a block runs: this process and all it started, sampled four times a second.

The system's own high-water mark (ru_maxrss) never falls, so it cannot tell one asset of a run from the next.
"""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

EVERY_SECONDS = 0.25


class PeakMemory:
    """`with PeakMemory() as peak: ...` and then `peak.mb`, in MB of resident memory summed over the process tree."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            self.mb = max(self.mb, sum(map(_resident, [me, *me.children(recursive=True)])) / 1e6)
            if self._stop.wait(EVERY_SECONDS):
                return


def _resident(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0
