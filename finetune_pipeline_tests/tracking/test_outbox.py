"""Metrics on their way: kept in order while nobody takes them, and never waited for."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from finetune_pipeline.tracking import outbox
from finetune_pipeline.tracking.outbox import Outbox


class Server:
    """Takes lines, unless it is away; may hang."""

    def __init__(self) -> None:
        self.away = False
        self.hangs = threading.Event()
        self.hangs.set()
        self.steps: list[int] = []

    def __call__(self, metrics: Mapping[str, float], step: int, at: int) -> bool:
        self.hangs.wait(30)
        if not self.away:
            self.steps.append(step)
        return not self.away


def test_lines_arrive_in_order_after_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    server = Server()
    box = Outbox(server)
    box.put({"loss": 1.0}, 0)
    server.away = True
    for step in range(1, 6):
        box.put({"loss": 1.0}, step)
    server.away = False
    box.put({"loss": 1.0}, 6)
    assert box.close() == 0 and server.steps == list(range(7))


def test_what_nobody_takes_is_counted_at_the_end() -> None:
    server = Server()
    server.away = True
    box = Outbox(server)
    for step in range(3):
        box.put({"loss": 1.0}, step)
    assert box.close() == 3


def test_a_server_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(outbox, "KEPT", 4)
    server = Server()
    server.hangs.clear()
    box = Outbox(server)
    for step in range(10):
        box.put({"loss": 1.0}, step)
    assert box.close() == 4
    server.hangs.set()
