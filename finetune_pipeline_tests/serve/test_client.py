"""The process around the endpoint: found or started, refused with a reason, and ended whatever it is doing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pytest import MonkeyPatch

from finetune_pipeline.backends import progress
from finetune_pipeline.backends.progress import activity, until
from finetune_pipeline.errors import JobCancelled, ServingError
from finetune_pipeline.records import Silent
from finetune_pipeline.serve import client, deployment_state, model_routes, supervisor
from finetune_pipeline.serve.client import Live, is_ours, live_endpoint, temporary, wait_served
from finetune_pipeline_tests.serve.deployment import KEY, Deployed, declare, running

MakeAdapter = Callable[[int], Path]


@pytest.fixture
def task(tiny_model: Path, tmp_path: Path, monkeypatch: MonkeyPatch) -> Deployed:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINETUNE_API_KEYS", f"tests:{KEY}")
    return declare(tmp_path / "data", "parcels", tiny_model)


@contextmanager
def stranger() -> Iterator[str]:
    """Somebody else's server, who answers everything with the same object."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok", "identity": "another one"}')

        def log_message(self, *_: object) -> None:
            return None

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_running_endpoint_is_used_when_it_is_ours(task: Deployed, monkeypatch: MonkeyPatch) -> None:
    with running() as server:
        monkeypatch.setenv("FINETUNE_ENDPOINT", server.url)
        with live_endpoint(task.task, task.store, Silent()) as found:
            assert found.url == server.url and found.get("/version")["tasks"]["parcels"]["champion"] is None
        monkeypatch.setenv("FINETUNE_HOME", "/elsewhere")
        assert not is_ours(server.url)


def test_a_stranger_is_not_used_and_a_temporary_endpoint_is_gone_afterwards(
    task: Deployed, monkeypatch: MonkeyPatch
) -> None:
    with stranger() as url:
        monkeypatch.setenv("FINETUNE_ENDPOINT", url)
        with live_endpoint(task.task, task.store, Silent()) as found:
            assert found.url != url and found.get("/health")["identity"] != "another one"
            started = [p.pid for p in psutil.Process().children(recursive=True) if "--announce" in p.cmdline()]
            assert len(started) == 1
        assert not psutil.pid_exists(started[0])
        with pytest.raises(ServingError, match="does not answer"):
            found.get("/version")


def test_an_endpoint_that_does_not_start_shows_why(task: Deployed, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.delenv("FINETUNE_API_KEYS")
    (tmp_path / "home" / "pipeline_key").mkdir(parents=True)
    why = r"exit code 9\n.*\n.*pipeline_key cannot be read: Is a directory"
    with pytest.raises(ServingError, match=why), temporary("parcels", "any", Silent()):
        pass


def test_waiting_can_be_cancelled() -> None:
    class Cancelled(Silent):
        def alive(self) -> None:
            raise JobCancelled("stopped")

    with pytest.raises(JobCancelled):
        until(lambda: None, lambda: 0, "nothing", Cancelled())


def test_a_wait_ends_when_nothing_moves_and_not_before() -> None:
    with pytest.raises(ServingError, match=r"for nothing, the last 0 s without progress: its log"):
        until(lambda: None, lambda: 0, "nothing", Silent(), lambda: ": its log", stalled=0.3)
    asked, moved = count(), count()
    assert until(lambda: next(asked) == 5, lambda: next(moved), "it", Silent(), stalled=0.3)  # a second, moving


def test_what_a_child_computes_is_progress() -> None:
    """As `dagster dev` does, which only waits for those it started."""
    child = [sys.executable, "-c", "while True: pass"]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({child})"], start_new_session=True
    )
    try:
        until(lambda: activity(parent.pid, 0.5)[0] > 0, lambda: 0, "half a second of its child", Silent(), stalled=60.0)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    assert activity(parent.pid) == (-1, -1)


BUSY = """
import time
while time.process_time() < 2.5:
    pass
"""


@pytest.fixture
def impatient(monkeypatch: MonkeyPatch) -> None:
    """Waits end after 1.5 s of no progress; any tick of the processor's clock is progress."""
    monkeypatch.setattr(progress, "STALLED_SECONDS", 1.5)
    monkeypatch.setattr(progress, "CPU_SECONDS", 0.01)


def test_an_endpoint_that_takes_long_to_start_is_waited_for(
    task: Deployed, impatient: None, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUSY, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with temporary("parcels", KEY, Silent()) as found:
        assert is_ours(found.url)


def test_a_version_that_loads_slowly_is_waited_for(
    task: Deployed, make_adapter: MakeAdapter, impatient: None, monkeypatch: MonkeyPatch
) -> None:
    real = model_routes.base_folder

    def slowly(found: Any) -> Path:
        end = time.thread_time() + 2.5
        while time.thread_time() < end:
            pass
        return real(found)

    monkeypatch.setattr(supervisor, "base_folder", slowly)
    with running() as server:
        version = task.promote(1, make_adapter(1))
        wait_served(Live(server.url, KEY), "parcels", "champion", version.adapter, Silent())
        assert server.ask("parcels").headers["x-finetune-version"] == "1"


def test_a_busy_endpoint_is_asked_again(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(client, "TRIES", 4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def answer() -> None:
            for answers in (False, False, True):
                connection, _ = silent.accept()
                if answers:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        threading.Thread(target=answer, daemon=True).start()
        assert client.Live(url, KEY).get("/version") == {}
        with pytest.raises(ServingError, match="does not answer"):
            client.Live(url, KEY).get("/version")


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "finetune_pipeline.serve.app", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_what_keeps_it_from_listening_has_an_exit_code_and_a_cure(task: Deployed, monkeypatch: MonkeyPatch) -> None:
    with stranger() as url:
        taken = serve("--port", url.rpartition(":")[2])
        _, says = taken.communicate(timeout=60)
    assert taken.returncode == 10
    assert url.removeprefix("http://") in says and f"process {os.getpid()}" in says and "FINETUNE_ENDPOINT=" in says
    monkeypatch.delenv("FINETUNE_API_KEYS")
    open_to_all = serve("--host", "0.0.0.0", "--port", "0")  # noqa: S104 - it has to refuse
    _, says = open_to_all.communicate(timeout=60)
    assert open_to_all.returncode == 8 and "FINETUNE_API_KEYS" in says


def listening(announce: Path) -> str:
    url = until(
        lambda: announce.exists() and is_ours(announce.read_text()) and announce.read_text(), lambda: 0, "it", Silent()
    )
    assert isinstance(url, str)
    return url


def test_ctrl_c_ends_it_in_good_order(task: Deployed, tmp_path: Path) -> None:
    process = serve("--port", "0", "--announce", str(tmp_path / "url"))
    try:
        listening(tmp_path / "url")
        process.send_signal(signal.SIGINT)
        _, says = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0 and "the endpoint has stopped" in says and "Traceback" not in says


def test_an_mlflow_that_hangs_delays_nothing_that_serves(
    task: Deployed, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """It takes connections, and never says a word. Start, answer, a new version, a rollback."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    task.promote(1, make_adapter(1))
    with socket.create_server(("127.0.0.1", 0)) as hung, running() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{hung.getsockname()[1]}")
        server.until_serves("parcels", 1)
        assert server.ask("parcels").status_code == 200
        task.promote(2, make_adapter(2))
        server.until_serves("parcels", 2)
        line = deployment_state.rollback("parcels", "worse")
        server.until_serves("parcels", 1)
        assert "version 1 serves again" in line and "could not follow" in line


def test_a_rollback_moves_the_traffic_before_it_asks_mlflow(
    task: Deployed, make_adapter: MakeAdapter, monkeypatch: MonkeyPatch
) -> None:
    """Version 1 answers while the alias still waits for an MLflow that never says a word."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for number in (1, 2):
        task.promote(number, make_adapter(number))
    with running() as server:
        server.until_serves("parcels", 2)
        with socket.create_server(("127.0.0.1", 0)) as hung:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{hung.getsockname()[1]}")
            rolling = threading.Thread(target=deployment_state.rollback, args=("parcels", "worse"))
            rolling.start()
            server.until_serves("parcels", 1)
            assert rolling.is_alive()
        rolling.join()


SLOW = """
import torch
from finetune_pipeline.inference.decoder import Decoder
from finetune_pipeline.serve import app

def slowly(decoder, step=Decoder.step):
    wide = torch.rand(1, 1, 2500, 2500)  # seconds within one call of torch
    for _ in range(6):
        wide = torch.nn.functional.scaled_dot_product_attention(wide, wide, wide)
    return step(decoder)

Decoder.step = slowly
app.main()
"""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["-m finetune_pipeline.serve.app", SLOW])
def test_it_can_be_stopped_in_the_middle_of_answers(
    task: Deployed, make_adapter: MakeAdapter, tmp_path: Path, stream: bool, how: str
) -> None:
    task.promote(1, make_adapter(1), max_new_tokens=1900)
    options = ["-c", how] if how == SLOW else how.split()
    command = [sys.executable, *options, "--port", "0", "--announce", str(tmp_path / "url")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    key = {"authorization": f"Bearer {KEY}"}
    body = {"model": "parcels", "messages": [{"role": "user", "content": "hi"}], "temperature": 2.0, "stream": stream}
    try:
        url = listening(tmp_path / "url")

        def told(what: str) -> Any:
            return httpx.get(url + "/version", headers=key, timeout=60).json()[what]

        def loaded() -> bool:
            tasks = told("tasks")
            return "parcels" in tasks and tasks["parcels"]["champion"] is not None

        until(loaded, lambda: 0, "the champion", Silent())
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx.post, url + "/v1/chat/completions", json=body, headers=key, timeout=60)
            until(lambda: told("busy"), lambda: 0, "the request", Silent())
            process.send_signal(signal.SIGTERM)
            _, says = process.communicate(timeout=60)
        assert answer.result().status_code == 200 or "the endpoint is stopping" in answer.result().text
    finally:
        process.kill()
    assert process.returncode == 0 and says.rstrip().endswith("the endpoint has stopped")
    assert "Traceback" not in says and "terminate" not in says
    (log,) = (tmp_path / "home" / "traffic" / "parcels").glob("*.jsonl")
    assert '"status": "error"' in log.read_text() or '"status": "ok"' in log.read_text()
