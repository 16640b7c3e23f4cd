"""The desk as a server: port, host, shutdown."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from finetune_pipeline.config.addresses import is_loopback
from finetune_pipeline.desk import users
from finetune_pipeline.desk.app import require_private, run
from finetune_pipeline.errors import PortInUse, ServingError

from .conftest import PASSWORD

START = "from finetune_pipeline.desk.app import run; import sys; run('127.0.0.1', int(sys.argv[1]))"


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_in_use_is_named_with_a_hint(place: Path) -> None:
    with taken_port() as port, pytest.raises(PortInUse) as caught:
        run("127.0.0.1", port)
    assert caught.value.exit_code == 10
    assert f"127.0.0.1:{port}" in caught.value.message and "FINETUNE_DESK_URL=" in caught.value.hint


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_it_prints_its_url_and_stops_on_a_signal(tmp_path: Path, signal_: signal.Signals) -> None:
    with taken_port() as port:
        pass
    environment = {**os.environ, "FINETUNE_HOME": str(tmp_path / "home"), "FINETUNE_DATA": str(tmp_path / "data")}
    with subprocess.Popen(
        [sys.executable, "-c", START, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as desk:
        try:
            assert desk.stdout is not None
            lines = [desk.stdout.readline() for _ in range(3)]
            assert (
                "Sign in as `steward` with the password" in lines[0]
                and lines[2].strip() == f"desk: http://127.0.0.1:{port}"
            )
            # the URL is printed just before the server accepts requests; until then they wait in the backlog
            answer = httpx.get(f"http://127.0.0.1:{port}/health", timeout=60)
            assert answer.text == "ok" and "server" not in answer.headers
            desk.send_signal(signal_)
            assert desk.wait(timeout=60) == 0
        finally:
            desk.kill()
        assert desk.stderr is not None
        assert "Traceback" not in desk.stderr.read()


def test_the_network_has_to_be_allowed_and_needs_a_created_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.setattr(users, "COST", 2**4)
    with pytest.raises(ServingError, match=r"open to the network on 0\.0\.0\.0") as caught:
        require_private("0.0.0.0")  # noqa: S104
    assert "FINETUNE_DESK_PUBLIC=1" in caught.value.hint
    monkeypatch.setenv("FINETUNE_DESK_PUBLIC", "1")
    users.first_start()
    with pytest.raises(ServingError, match="without a user that a person created"):
        run("0.0.0.0", 0)  # noqa: S104
    users.add_user("anna", PASSWORD)
    require_private("0.0.0.0")  # noqa: S104


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.5", False), ("desk.example", False), ("", False)),  # noqa: S104
    ],
)
def test_which_hosts_are_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
