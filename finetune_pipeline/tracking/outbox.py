"""Metrics on their way to a server that may be away: sent in the background, in their order, and kept until taken.

    outbox = Outbox(send)               # send(metrics, step, milliseconds) gives whether they were taken
    outbox.put({"loss": 0.31}, step=12) # never waits
    left = outbox.close()               # sends what is left, as long as it is taken

What it is not: what is sent to whom (tracking.py).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

KEPT = 10_000  # lines that wait; beyond it the oldest go
RETRY_SECONDS = 15.0
PATIENCE_SECONDS = 60.0  # at the end, for a server that hangs
Send = Callable[[Mapping[str, float], int, int], bool]


class Outbox:
    def __init__(self, send: Send) -> None:
        self._send = send
        self._items: deque[tuple[Mapping[str, float], int, int]] = deque(maxlen=KEPT)
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, metrics: Mapping[str, float], step: int) -> None:
        with self._wake:
            self._items.append((dict(metrics), step, int(time.time() * 1000)))
            self._wake.notify()

    def close(self) -> int:
        """Send what is left until something is not taken. Gives the number of lines that are left then."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(PATIENCE_SECONDS)
        return len(self._items)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            taken = self._send(*item)
            with self._wake:
                if taken and self._items and self._items[0] is item:
                    self._items.popleft()
                elif not taken and self._closing:
                    return
                elif not taken:
                    self._wake.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _next(self) -> tuple[Mapping[str, float], int, int] | None:
        """The oldest line, once there is one; None at the end."""
        with self._wake:
            self._wake.wait_for(lambda: self._items or self._closing)
            return self._items[0] if self._items else None
