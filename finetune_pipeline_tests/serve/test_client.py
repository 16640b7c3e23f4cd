"""The endpoint's process and the pipeline's client of it: start, failure to start, waiting, stop."""

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
from finetune_pipeline.errors import JobCanceled, ServingError
from finetune_pipeline.records import Silent
from finetune_pipeline.serve import client, model_routes
from finetune_pipeline.serve.client import (
    EndpointClient,
    is_own_endpoint,
    live_endpoint,
    temporary_endpoint,
    wait_until_served,
)
from finetune_pipeline.serve.rollback import rollback
from finetune_pipeline_tests.serve.deployment import KEY, Deployed, declare, running

MakeAdapter = Callable[[int], Path]


@pytest.fixture
def task(tiny_model: Path, tmp_path: Path, monkeypatch: MonkeyPatch) -> Deployed:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINETUNE_API_KEYS", f"tests:{KEY}")
    return declare(tmp_path / "data", "parcels", tiny_model)


@contextmanager
def foreign_server() -> Iterator[str]:
    """A server with another identity, which answers every GET with the same object."""

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


def test_the_running_endpoint_is_used_when_its_identity_matches(task: Deployed, monkeypatch: MonkeyPatch) -> None:
    with running() as server:
        monkeypatch.setenv("FINETUNE_ENDPOINT_URL", server.url)
        with live_endpoint(task.task, task.store, Silent()) as endpoint:
            assert endpoint.url == server.url and endpoint.get("/version")["tasks"]["parcels"]["champion"] is None
        monkeypatch.setenv("FINETUNE_HOME", "/elsewhere")
        assert not is_own_endpoint(server.url)


def test_a_foreign_server_is_not_used_and_a_temporary_endpoint_is_ended_afterwards(
    task: Deployed, monkeypatch: MonkeyPatch
) -> None:
    with foreign_server() as url:
        monkeypatch.setenv("FINETUNE_ENDPOINT_URL", url)
        with live_endpoint(task.task, task.store, Silent()) as endpoint:
            assert endpoint.url != url and endpoint.get("/health")["identity"] != "another one"
            started = [p.pid for p in psutil.Process().children(recursive=True) if "--announce" in p.cmdline()]
            assert len(started) == 1
        assert not psutil.pid_exists(started[0])
        with pytest.raises(ServingError, match="does not answer"):
            endpoint.get("/version")


def test_an_endpoint_that_does_not_start_raises_the_reason(
    task: Deployed, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    monkeypatch.delenv("FINETUNE_API_KEYS")
    (tmp_path / "home" / "pipeline_key").mkdir(parents=True)
    reason = r"exit code 9\n.*\n.*pipeline_key cannot be read: Is a directory"
    with pytest.raises(ServingError, match=reason), temporary_endpoint("parcels", "any", Silent()):
        pass


def test_waiting_can_be_canceled() -> None:
    class Canceled(Silent):
        def alive(self) -> None:
            raise JobCanceled("stopped")

    with pytest.raises(JobCanceled):
        until(lambda: None, lambda: 0, "nothing", Canceled())


def test_a_wait_ends_without_progress_and_not_before() -> None:
    with pytest.raises(ServingError, match=r"for nothing, the last 0 s without progress: its log"):
        until(lambda: None, lambda: 0, "nothing", Silent(), lambda: ": its log", stalled=0.3)
    polls, progress_figure = count(), count()
    assert until(lambda: next(polls) == 5, lambda: next(progress_figure), "it", Silent(), stalled=0.3)  # takes a second


def test_the_cpu_time_of_a_child_process_is_progress() -> None:
    """`dagster dev`, for example, only waits for its child processes."""
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
def short_stall_limit(monkeypatch: MonkeyPatch) -> None:
    """Waits end after 1.5 s without progress; any CPU time is progress."""
    monkeypatch.setattr(progress, "STALLED_SECONDS", 1.5)
    monkeypatch.setattr(progress, "CPU_SECONDS", 0.01)


def test_a_slow_start_of_the_endpoint_is_waited_for(
    task: Deployed, short_stall_limit: None, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(BUSY, "utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with temporary_endpoint("parcels", KEY, Silent()) as endpoint:
        assert is_own_endpoint(endpoint.url)


def test_a_slow_load_of_a_version_is_waited_for(
    task: Deployed, make_adapter: MakeAdapter, short_stall_limit: None, monkeypatch: MonkeyPatch
) -> None:
    real = model_routes.base_folder

    def slow_base_folder(artifacts: Any) -> Path:
        end = time.thread_time() + 2.5
        while time.thread_time() < end:
            pass
        return real(artifacts)

    monkeypatch.setattr(model_routes, "base_folder", slow_base_folder)
    with running() as server:
        version = task.promote(1, make_adapter(1))
        wait_until_served(EndpointClient(server.url, KEY), "parcels", "champion", version.adapter, Silent())
        assert server.complete("parcels").headers["x-finetune-version"] == "1"


def test_a_request_to_a_busy_endpoint_is_retried(monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RESPONSE_SECONDS", 0.2)
    monkeypatch.setattr(client, "MAX_ATTEMPTS", 4)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        def answer() -> None:
            for answers in (False, False, True):
                connection, _ = silent.accept()
                if answers:
                    connection.recv(4096)
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        threading.Thread(target=answer, daemon=True).start()
        assert client.EndpointClient(url, KEY).get("/version") == {}
        with pytest.raises(ServingError, match="does not answer"):
            client.EndpointClient(url, KEY).get("/version")


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "finetune_pipeline.serve.server", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_failure_to_listen_has_an_exit_code_and_a_hint(task: Deployed, monkeypatch: MonkeyPatch) -> None:
    with foreign_server() as url:
        taken = serve("--port", url.rpartition(":")[2])
        _, stderr = taken.communicate(timeout=60)
    assert taken.returncode == 10
    assert (
        url.removeprefix("http://") in stderr
        and f"process {os.getpid()}" in stderr
        and "FINETUNE_ENDPOINT_URL=" in stderr
    )
    monkeypatch.delenv("FINETUNE_API_KEYS")
    open_to_all = serve("--host", "0.0.0.0", "--port", "0")  # noqa: S104 - it has to refuse
    _, stderr = open_to_all.communicate(timeout=60)
    assert open_to_all.returncode == 8 and "FINETUNE_API_KEYS" in stderr


def announced_url(announce: Path) -> str:
    def listening() -> str:
        return announce.read_text() if announce.exists() and is_own_endpoint(announce.read_text()) else ""

    url = until(listening, lambda: 0, "it", Silent())
    assert isinstance(url, str)
    return url


def test_ctrl_c_ends_the_endpoint_with_exit_code_0(task: Deployed, tmp_path: Path) -> None:
    process = serve("--port", "0", "--announce", str(tmp_path / "url"))
    try:
        announced_url(tmp_path / "url")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0 and "the endpoint has stopped" in stderr and "Traceback" not in stderr


def test_a_hanging_mlflow_server_delays_no_serving(
    task: Deployed, make_adapter: MakeAdapter, tmp_path: Path, monkeypatch: MonkeyPatch
) -> None:
    """It accepts connections and never responds. Start, an answer, a new version, a rollback."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    task.promote(1, make_adapter(1))
    with socket.create_server(("127.0.0.1", 0)) as hanging, running() as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{hanging.getsockname()[1]}")
        server.wait_until_serves("parcels", 1)
        assert server.complete("parcels").status_code == 200
        task.promote(2, make_adapter(2))
        server.wait_until_serves("parcels", 2)
        line = rollback("parcels", "worse")
        server.wait_until_serves("parcels", 1)
        assert "version 1 serves again" in line and "was not updated" in line


def test_a_rollback_moves_the_traffic_before_it_calls_mlflow(
    task: Deployed, make_adapter: MakeAdapter, monkeypatch: MonkeyPatch
) -> None:
    """Version 1 answers while the update of the alias waits for an MLflow server that never responds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "600")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for number in (1, 2):
        task.promote(number, make_adapter(number))
    with running() as server:
        server.wait_until_serves("parcels", 2)
        with socket.create_server(("127.0.0.1", 0)) as hanging:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{hanging.getsockname()[1]}")
            rollback_thread = threading.Thread(target=rollback, args=("parcels", "worse"))
            rollback_thread.start()
            server.wait_until_serves("parcels", 1)
            assert rollback_thread.is_alive()
        rollback_thread.join()


SLOW = """
import torch
from finetune_pipeline.inference.decoder import Decoder
from finetune_pipeline.serve import server

def slow_step(decoder, step=Decoder.step):
    tensor = torch.rand(1, 1, 2500, 2500)  # seconds within one call of torch
    for _ in range(6):
        tensor = torch.nn.functional.scaled_dot_product_attention(tensor, tensor, tensor)
    return step(decoder)

Decoder.step = slow_step
server.main()
"""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("program", ["-m finetune_pipeline.serve.server", SLOW])
def test_the_endpoint_can_be_stopped_during_answers(
    task: Deployed, make_adapter: MakeAdapter, tmp_path: Path, stream: bool, program: str
) -> None:
    task.promote(1, make_adapter(1), max_new_tokens=1900)
    options = ["-c", program] if program == SLOW else program.split()
    command = [sys.executable, *options, "--port", "0", "--announce", str(tmp_path / "url")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    key = {"authorization": f"Bearer {KEY}"}
    body = {"model": "parcels", "messages": [{"role": "user", "content": "hi"}], "temperature": 2.0, "stream": stream}
    try:
        url = announced_url(tmp_path / "url")

        def version(field: str) -> Any:
            return httpx.get(url + "/version", headers=key, timeout=60).json()[field]

        def loaded() -> bool:
            tasks = version("tasks")
            return "parcels" in tasks and tasks["parcels"]["champion"] is not None

        until(loaded, lambda: 0, "the champion", Silent())
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(httpx.post, url + "/v1/chat/completions", json=body, headers=key, timeout=60)
            until(lambda: version("busy"), lambda: 0, "the request", Silent())
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=60)
        assert answer.result().status_code == 200 or "the endpoint is stopping" in answer.result().text
    finally:
        process.kill()
    assert process.returncode == 0 and stderr.rstrip().endswith("the endpoint has stopped")
    assert "Traceback" not in stderr and "terminate" not in stderr
    (log,) = (tmp_path / "home" / "traffic" / "parcels").glob("*.jsonl")
    assert '"status": "error"' in log.read_text() or '"status": "ok"' in log.read_text()
