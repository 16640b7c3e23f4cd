"""The endpoint's process: the URL that it reports. Start, signals and errors are tested with its client."""

from __future__ import annotations

import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config.addresses import DEFAULTS
from finetune_pipeline.serve import server


def test_the_url_of_an_ipv6_address_has_brackets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))

    class NotServing(server.Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            return None

    monkeypatch.setattr(server, "Server", NotServing)
    monkeypatch.setattr(server, "job_environment", dict)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setattr(server, "listen", lambda *_: listening)
        server.run("::1", 0, announce=tmp_path / "url")
        assert (tmp_path / "url").read_text() == f"http://[::1]:{listening.getsockname()[1]}"


def test_the_default_address_is_that_of_the_declared_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(server, "run", lambda host, port, *_: started.append(f"http://{host}:{port}"))
    monkeypatch.setattr(sys, "argv", ["server"])
    server.main()
    assert started == [DEFAULTS["FINETUNE_ENDPOINT_URL"]]
