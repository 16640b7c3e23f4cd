"""`finetune up`: start Dagster's UI and daemon, MLflow's UI, the desk and the endpoint together; Ctrl-C stops them.

    up(print)
    desk      http://127.0.0.1:8310

Each is a separate process group with its output in <home>/logs. When one ends, the others are stopped and the end of
its log is shown. When $MLFLOW_TRACKING_URI is the URL of a server, no MLflow server is started. For production, run
each server as its own unit, container or pod."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from finetune_pipeline.backends.local import end_group, job_environment
from finetune_pipeline.backends.progress import activity, until
from finetune_pipeline.config.addresses import address, mlflow_server, require_free
from finetune_pipeline.config.credentials import hide_credentials
from finetune_pipeline.errors import ServingError
from finetune_pipeline.records import Reporter, Silent
from finetune_pipeline.serve.traffic import private
from finetune_pipeline.store import dagster_home, home, mlflow_artifacts, mlflow_uri
from finetune_pipeline.tracking import background

STOP_SECONDS = 20.0  # a server that is idle for so long after SIGTERM is killed


@dataclass(frozen=True)
class Server:
    """A server to start. `variable`: the environment variable of its URL; `health`: the path that answers when it is
    up; `environment`: added to that of the process."""

    name: str
    variable: str
    health: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The URL, without a trailing slash."""
        return address(self.variable)


def servers() -> list[Server]:
    """The servers to start. PortInUse for the first port that is in use, before any server is started."""
    dagster_host, dagster_port = require_free("FINETUNE_DAGSTER_URL", "the Dagster UI")
    require_free("FINETUNE_DESK_URL", "the desk")
    require_free("FINETUNE_ENDPOINT_URL", "the endpoint")
    python = sys.executable
    dagster = (python, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", dagster_host, "-p", str(dagster_port))
    return [
        Server("Dagster", "FINETUNE_DAGSTER_URL", "/server_info", dagster),
        *([] if mlflow_server() else [_mlflow()]),
        Server("desk", "FINETUNE_DESK_URL", "/health", (python, "-m", "finetune_pipeline.cli.commands", "desk")),
        Server(
            "endpoint", "FINETUNE_ENDPOINT_URL", "/health", (python, "-m", "finetune_pipeline.cli.commands", "serve")
        ),
    ]


def _mlflow() -> Server:
    """MLflow's UI on our database, whose URI is passed in the environment: as an argument, a password in it would be
    visible in every list of processes."""
    host, port = require_free("FINETUNE_MLFLOW_URL", "the MLflow UI")
    command = (sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1")
    stores = {"MLFLOW_BACKEND_STORE_URI": mlflow_uri(), "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(mlflow_artifacts())}
    return Server("MLflow", "FINETUNE_MLFLOW_URL", "/health", command, stores)


def up(show: Callable[[str], None]) -> None:
    """Start all servers, show their URLs, wait for Ctrl-C or SIGTERM, stop all. ServingError when one does not
    start."""
    wanted = servers()
    stop = _StopSignal()
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for server in wanted:
            running[server.name] = _start(server)
        for server in sorted(wanted, key=lambda server: server.name == "MLflow"):  # MLflow last: it may start slowly
            _wait_until_up(server, running[server.name], stop, _LogReporter(show))
            show(f"{server.name:<9} {server.url}")
        if external := mlflow_server():
            show(f"{'MLflow':<9} {external} (external)")
        if (delivery := background.start()) is not None:
            running["delivery"] = delivery  # it ends by itself
            show("trainings that ran while MLflow was away are being delivered to it")
        show("Ctrl-C stops them.")
        while not stop.requested:
            time.sleep(0.3)
            for server in wanted:
                _require_alive(server, running[server.name])
    except KeyboardInterrupt:
        pass
    finally:
        show("stopping ...")
        _stop_all(list(running.values()))
        show("all stopped")


class _LogReporter(Silent):
    """A reporter that shows log messages only."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def log(self, text: str) -> None:
        self._show(text)


class _StopSignal:
    """Set by SIGTERM and SIGINT. A second Ctrl-C does not interrupt the stopping of the servers."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, *_: object) -> None:
        self.requested = True


def _log(server: Server) -> Path:
    return home() / "logs" / f"{server.name.lower()}.log"


def _start(server: Server) -> subprocess.Popen[bytes]:
    _log(server).parent.mkdir(parents=True, exist_ok=True)
    extra = {"DAGSTER_HOME": str(dagster_home()), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **server.environment}
    with private(_log(server), "wb") as log:
        return subprocess.Popen(
            server.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**job_environment(), **extra, "DAGSTER_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            restore_signals=True,
            cwd=os.getcwd(),  # noqa: PTH109 (the folder of workspace.yaml)
        )


def _wait_until_up(server: Server, process: subprocess.Popen[bytes], stop: _StopSignal, report: Reporter) -> None:
    """Return when the server answers. ServingError when it ends or is idle (backends/progress.py): there is no time
    limit, so that a slow machine only takes longer."""

    def answers() -> bool:
        if stop.requested:
            raise KeyboardInterrupt
        _require_alive(server, process)
        try:
            return httpx.get(server.url + server.health, timeout=5.0).status_code < 500
        except httpx.TransportError:
            return False

    until(
        answers,
        lambda: activity(process.pid),
        f"{server.name} to answer at {server.url}",
        report,
        lambda: f"; its last lines ({_log(server)}):\n{_tail(server)}",
    )


def _require_alive(server: Server, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        raise ServingError(
            f"{server.name} ended with exit code {process.returncode}; its last lines:\n{_tail(server)}",
            f"see {_log(server)}, fix it, and start again",
        )


def _tail(server: Server, lines: int = 12) -> str:
    """The end of its log, without credentials: MLflow logs the URI of its database with user and password."""
    end = _log(server).read_text("utf-8", "replace").splitlines()[-lines:]
    return hide_credentials("\n".join(end), mlflow_uri())


def _stop_all(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:  # all at the same time, so that stopping takes as long as the slowest
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        end_group(process, STOP_SECONDS)
