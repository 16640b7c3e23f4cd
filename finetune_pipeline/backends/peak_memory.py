"""Peak memory of a block: resident memory of this process and its descendants, sampled four times a second.

    with PeakMemory() as peak:
        ...
    print(peak.mb)

The operating system's high-water mark (ru_maxrss) never falls, so it cannot measure one asset of a run.
"""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

SAMPLE_SECONDS = 0.25


class PeakMemory:
    """`mb`: the largest sample so far, in MB (10^6 bytes), summed over the process tree."""

    def __init__(self) -> None:
        self.mb = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        own = psutil.Process()
        while True:
            self.mb = max(self.mb, sum(map(_resident, [own, *own.children(recursive=True)])) / 1e6)
            if self._stop.wait(SAMPLE_SECONDS):
                return


def _resident(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0
