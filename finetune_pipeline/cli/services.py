"""`finetune up`: Dagster's UI and daemon, MLflow's UI, the desk and the endpoint, started together, stopped together.

Each is a process group of its own with its output in <home>/logs; when one dies the others are stopped and the end of
its log is shown. Where $MLFLOW_TRACKING_URI names a server, that one is used and no other is started; nothing waits for
it. What it is not: a way to run in production, where each has its own unit, container or pod.
"""

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

STOP_SECONDS = 20.0  # of doing nothing, after which a server that was told to end is killed


@dataclass(frozen=True)
class Server:
    name: str
    variable: str
    health: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return address(self.variable)


def servers() -> list[Server]:
    """What is started, with its ports checked: PortInUse names the first that is taken, before anything is started."""
    dagster_host, dagster_port = require_free("FINETUNE_DAGSTER_URL", "the Dagster UI")
    require_free("FINETUNE_DESK_URL", "the desk")
    require_free("FINETUNE_ENDPOINT", "the endpoint")
    python = sys.executable
    dagster = (python, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", dagster_host, "-p", str(dagster_port))
    return [
        Server("Dagster", "FINETUNE_DAGSTER_URL", "/server_info", dagster),
        *([] if mlflow_server() else [_mlflow()]),
        Server("desk", "FINETUNE_DESK_URL", "/login", (python, "-m", "finetune_pipeline.cli.commands", "desk")),
        Server("endpoint", "FINETUNE_ENDPOINT", "/health", (python, "-m", "finetune_pipeline.cli.commands", "serve")),
    ]


def _mlflow() -> Server:
    """MLflow's UI on our database. Its address goes by the environment: a password in it would stand in every process
    list."""
    host, port = require_free("FINETUNE_MLFLOW_URL", "the MLflow UI")
    command = (sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1")
    places = {"MLFLOW_BACKEND_STORE_URI": mlflow_uri(), "MLFLOW_DEFAULT_ARTIFACT_ROOT": str(mlflow_artifacts())}
    return Server("MLflow", "FINETUNE_MLFLOW_URL", "/health", command, places)


def up(say: Callable[[str], None]) -> None:
    """Start all, say where they are, wait for Ctrl-C (or SIGTERM), stop all. ServingError when one does not start."""
    wanted = servers()
    stopping = _Stop()
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for server in wanted:
            running[server.name] = _start(server)
        for server in sorted(wanted, key=lambda one: one.name == "MLflow"):  # what serves waits for nobody
            _wait_until_up(server, running[server.name], stopping, _Saying(say))
            say(f"{server.name:<9} {server.url}")
        if elsewhere := mlflow_server():
            say(f"{'MLflow':<9} {elsewhere} (runs elsewhere)")
        say("Ctrl-C stops them.")
        while not stopping.asked:
            time.sleep(0.3)
            for server in wanted:
                _require_alive(server, running[server.name])
    except KeyboardInterrupt:
        pass
    finally:
        say("stopping ...")
        _stop_all(list(running.values()))
        say("all stopped")


class _Saying(Silent):
    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def log(self, text: str) -> None:
        self._say(text)


class _Stop:
    """Set by SIGTERM and SIGINT; a second Ctrl-C does not leave servers behind either."""

    def __init__(self) -> None:
        self.asked = False
        for which in (signal.SIGTERM, signal.SIGINT):
            signal.signal(which, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


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
            cwd=os.getcwd(),  # noqa: PTH109 (workspace.yaml lies here)
        )


def _wait_until_up(server: Server, process: subprocess.Popen[bytes], stopping: _Stop, report: Reporter) -> None:
    """Return when the server answers. ServingError when it ends, or does nothing any more; a slow machine only takes
    longer."""

    def answers() -> bool:
        if stopping.asked:
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
    """The end of its log. MLflow names its database there, with user and password: these are left out."""
    end = _log(server).read_text("utf-8", "replace").splitlines()[-lines:]
    return hide_credentials("\n".join(end), mlflow_uri())


def _stop_all(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:  # all at once, so that the slowest decides how long it takes
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
    for process in processes:
        end_group(process, STOP_SECONDS)
