"""The outbox keeps metrics in order during an outage, and never blocks."""

from __future__ import annotations

import threading

import pytest

from finetune_pipeline.tracking import outbox
from finetune_pipeline.tracking.outbox import Metrics, Outbox


class Server:
    """Accepts lines unless `down`; hangs while `responds` is cleared."""

    def __init__(self) -> None:
        self.down = False
        self.responds = threading.Event()
        self.responds.set()
        self.steps: list[int] = []

    def __call__(self, item: Metrics) -> bool:
        self.responds.wait(30)
        if not self.down:
            self.steps.append(item.step)
        return not self.down


def test_lines_arrive_in_order_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    server = Server()
    queue = Outbox(server)
    queue.put({"loss": 1.0}, 0)
    server.down = True
    for step in range(1, 6):
        queue.put({"loss": 1.0}, step)
    server.down = False
    queue.put({"loss": 1.0}, 6)
    assert queue.close() == 0 and server.steps == list(range(7))


def test_close_returns_the_number_of_unsent_lines() -> None:
    server = Server()
    server.down = True
    queue = Outbox(server)
    for step in range(3):
        queue.put({"loss": 1.0}, step)
    assert queue.close() == 3


def test_close_gives_up_on_a_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "CLOSE_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "MAX_QUEUED", 4)
    server = Server()
    server.responds.clear()
    queue = Outbox(server)
    for step in range(10):
        queue.put({"loss": 1.0}, step)
    assert queue.close() == 4
    server.responds.set()
