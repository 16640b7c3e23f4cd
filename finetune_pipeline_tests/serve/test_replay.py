"""The replay through the endpoint: kept answers, slow endpoints, endpoints that compute nothing."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.baseline.answer_log import AnswerFile
from finetune_pipeline.errors import ServingError
from finetune_pipeline.records import Answer, Silent
from finetune_pipeline.serve import replay as replay_module
from finetune_pipeline.serve.client import EndpointClient
from finetune_pipeline.serve.replay import replay
from finetune_pipeline_tests.serve.deployment import KEY, TEST


def test_rows_in_the_answer_log_are_not_sent_again(tmp_path: Path) -> None:
    """Nothing listens at this address."""
    answer_log = AnswerFile(tmp_path / "answers.jsonl")
    for row in TEST:
        answer_log.append(Answer(row.id, "parcels", "a"))
    unreachable = EndpointClient("http://127.0.0.1:9", KEY)
    assert replay(unreachable, "parcels", TEST, Silent(), AnswerFile(tmp_path / "answers.jsonl")) == {
        e.id: "a" for e in TEST
    }
    with pytest.raises(ServingError, match=r"the connection to .* failed at row"):
        replay(unreachable, "parcels@base", TEST, Silent(), answer_log)  # the log has no answers of this model


class SlowServer(ThreadingHTTPServer):
    """An endpoint that answers once `may_answer` is set; its first `full` responses are 429. While `computes` is True,
    each GET raises `steps`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.steps, self.computes, self.may_answer, self.full = 0, True, threading.Event(), 3
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class SlowHandler(BaseHTTPRequestHandler):
    server: SlowServer

    def do_GET(self) -> None:
        self.server.steps += self.server.computes
        self.respond(200, {"steps": self.server.steps})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        if self.server.full > 0:
            self.server.full -= 1
            return self.respond(429, {})
        self.server.may_answer.wait(30)
        return self.respond(200, {"choices": [{"message": {"content": "a"}}]})

    def respond(self, status: int, row: dict[str, Any]) -> None:
        raw = json.dumps(row).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(raw)))
        self.send_header("retry-after", "0")
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        return None


@pytest.fixture
def slow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowServer]:
    for name, seconds in (("WATCH_SECONDS", 0.05), ("LOG_SECONDS", 0.1), ("STALLED_SECONDS", 1.0)):
        monkeypatch.setattr(replay_module, name, seconds)
    server = SlowServer()
    yield server
    server.may_answer.set()
    server.shutdown()
    server.server_close()


class FastClock(asyncio.SelectorEventLoop):
    """Its clock is a thousand times too fast: a limit of half an hour is reached in two seconds."""

    def time(self) -> float:
        return super().time() * 1000


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, FastClock])
def test_a_slow_replay_is_logged_and_goes_on(
    slow_server: SlowServer, loop: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.events, "new_event_loop", loop)  # which asyncio.run calls
    messages: list[str] = []

    class RecordLog(Silent):
        def log(self, text: str) -> None:
            messages.append(text)
            if len(messages) == 15:  # longer than STALLED_SECONDS
                slow_server.may_answer.set()

    assert replay(EndpointClient(slow_server.url, KEY), "parcels", TEST, RecordLog()) == {row.id: "a" for row in TEST}
    assert "0 of 12 rows" in messages[0] and "work goes on" in messages[0]


def test_an_endpoint_that_computes_nothing_ends_the_replay(slow_server: SlowServer) -> None:
    slow_server.computes = False
    with pytest.raises(ServingError, match=r"has computed nothing for \d+ s; 0 of 12 rows"):
        replay(EndpointClient(slow_server.url, KEY), "parcels", TEST, Silent())
