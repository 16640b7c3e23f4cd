"""A queue of metrics for a server that may be down: sent by a background thread, in order, kept until accepted.

outbox = Outbox(send)               # send(Metrics) returns whether they were accepted
outbox.put({"loss": 0.31}, step=12) # returns immediately
unsent = outbox.close()             # sends the rest, until a line is not accepted
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_QUEUED = 10_000  # lines; beyond it the oldest are discarded
RETRY_SECONDS = 15.0
CLOSE_TIMEOUT_SECONDS = 60.0  # for a server that hangs


@dataclass(frozen=True, slots=True)
class Metrics:
    """One line of metrics: `values` by name, at an optimizer step. `timestamp_ms`: milliseconds since 1970."""

    values: Mapping[str, float]
    step: int
    timestamp_ms: int


class Outbox:
    """`send` is called from the thread, one line at a time; a line that it does not accept is sent again later."""

    def __init__(self, send: Callable[[Metrics], bool]) -> None:
        self._send = send
        self._queue: deque[Metrics] = deque(maxlen=MAX_QUEUED)
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def put(self, metrics: Mapping[str, float], step: int) -> None:
        with self._changed:
            self._queue.append(Metrics(dict(metrics), step, int(time.time() * 1000)))
            self._changed.notify()

    def close(self) -> int:
        """Send the rest until a line is not accepted, or for CLOSE_TIMEOUT_SECONDS; the number of unsent lines."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(CLOSE_TIMEOUT_SECONDS)
        return len(self._queue)

    def _run(self) -> None:
        while (item := self._next()) is not None:
            accepted = self._send(item)
            with self._changed:
                if accepted and self._queue and self._queue[0] is item:
                    self._queue.popleft()
                elif not accepted and self._closing:
                    return
                elif not accepted:
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _next(self) -> Metrics | None:
        """Waits for the oldest line; None when closing and the queue is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            return self._queue[0] if self._queue else None
