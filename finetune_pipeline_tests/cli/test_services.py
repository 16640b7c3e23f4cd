"""`finetune up`: which servers are started, what the process list shows, and how long it waits."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from finetune_pipeline.backends import progress
from finetune_pipeline.cli import services as module
from finetune_pipeline.cli.services import Server, servers, up
from finetune_pipeline.config.addresses import address
from finetune_pipeline.errors import ServingError

VARIABLES = ("FINETUNE_DAGSTER_URL", "FINETUNE_MLFLOW_URL", "FINETUNE_DESK_URL", "FINETUNE_ENDPOINT_URL")
SLOW = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
end = time.process_time() + float(sys.argv[2])
while time.process_time() < end: pass
if sys.argv[3:] == ["hang"]: time.sleep(600)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(autouse=True)
def ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for variable in VARIABLES:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv(variable, f"http://127.0.0.1:{probe.getsockname()[1]}")


def slow(name: str, variable: str, *options: str) -> Server:
    port = address(variable).rpartition(":")[2]
    return Server(name, variable, "/", (sys.executable, "-c", SLOW, port, *options))


def test_all_four_servers_are_started_without_an_external_mlflow(tmp_path: Path) -> None:
    assert [server.name for server in servers()] == ["Dagster", "MLflow", "desk", "endpoint"]


def test_an_external_mlflow_server_is_used_and_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:secret@127.0.0.1:9/")
    assert [server.name for server in servers()] == ["Dagster", "desk", "endpoint"]
    monkeypatch.setattr(module, "servers", lambda: [slow("desk", "FINETUNE_DESK_URL", "0")])
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text.startswith("Ctrl-C"):
            signal.raise_signal(signal.SIGINT)

    up(show)
    assert any("MLflow" in text and "http://127.0.0.1:9" in text for text in shown)
    assert "secret" not in "".join(shown) and shown[-1] == "all stopped"


def test_the_shown_end_of_a_log_has_no_password(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri = "postgresql+x+y://anna:s3cr#et@db/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    failing = (sys.executable, "-c", f"raise SystemExit('Invalid database URI: {uri}')")
    server = Server("MLflow", "FINETUNE_MLFLOW_URL", "/", failing)
    process = module._start(server)
    process.wait()
    with pytest.raises(ServingError, match=r"Invalid database URI: postgresql\+x\+y://db/mlflow"):
        module._require_alive(server, process)


def test_the_process_list_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql+psycopg2://anna:secret@db/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow = next(server for server in servers() if server.name == "MLflow")
    assert "secret" not in " ".join(mlflow.command) and mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == uri
    process = module._start(replace(mlflow, command=(sys.executable, "-c", "import time; time.sleep(60)")))
    try:
        running = psutil.Process(process.pid)
        while not (environment := running.environ()):  # between the old program and the new one it has none
            time.sleep(0.01)
        assert environment["MLFLOW_BACKEND_STORE_URI"] == uri and "secret" not in " ".join(running.cmdline())
    finally:
        process.kill()
        process.wait()


def test_a_slow_start_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STALLED_SECONDS", 1.0)
    monkeypatch.setattr(progress, "CPU_SECONDS", 0.01)
    server = slow("desk", "FINETUNE_DESK_URL", "3")
    process = module._start(server)
    try:
        module._wait_until_up(server, process, module._StopSignal(), module._LogReporter(print))
    finally:
        module._stop_all([process])


def test_a_server_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STALLED_SECONDS", 1.0)
    server = slow("desk", "FINETUNE_DESK_URL", "0", "hang")
    process = module._start(server)
    try:
        with pytest.raises(ServingError, match="without progress"):
            module._wait_until_up(server, process, module._StopSignal(), module._LogReporter(print))
    finally:
        module._stop_all([process])


def test_the_other_servers_do_not_wait_for_an_mlflow_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STALLED_SECONDS", 2.0)
    monkeypatch.setattr(progress, "CPU_SECONDS", 0.01)
    hung = slow("MLflow", "FINETUNE_MLFLOW_URL", "0", "hang")
    monkeypatch.setattr(module, "servers", lambda: [hung, slow("desk", "FINETUNE_DESK_URL", "0")])
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text.startswith("desk"):
            signal.raise_signal(signal.SIGINT)

    up(show)
    assert shown[0].startswith("desk") and shown[-1] == "all stopped"


def test_only_the_owner_can_read_the_logs(tmp_path: Path) -> None:
    assert threading.current_thread() is threading.main_thread()
    process = module._start(slow("desk", "FINETUNE_DESK_URL", "0"))
    module._stop_all([process])
    assert oct((tmp_path / "logs" / "desk.log").stat().st_mode)[-3:] == "600"
