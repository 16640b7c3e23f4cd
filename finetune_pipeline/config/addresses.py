"""Addresses of the four servers, from environment variables; loopback and fixed ports by default.

FINETUNE_DAGSTER_URL   http://127.0.0.1:3000     Dagster's UI
FINETUNE_DESK_URL      http://127.0.0.1:8310     the desk (review, reports)
FINETUNE_ENDPOINT_URL  http://127.0.0.1:8311     the OpenAI-compatible endpoint
FINETUNE_MLFLOW_URL    http://127.0.0.1:8312     MLflow's UI; ignored when $MLFLOW_TRACKING_URI is the URL of a server
"""

from __future__ import annotations

import ipaddress
import os
import socket
from urllib.parse import urlsplit

import psutil

from finetune_pipeline.config.credentials import without_credentials
from finetune_pipeline.errors import PortInUse

DEFAULTS = {
    "FINETUNE_DAGSTER_URL": "http://127.0.0.1:3000",
    "FINETUNE_DESK_URL": "http://127.0.0.1:8310",
    "FINETUNE_ENDPOINT_URL": "http://127.0.0.1:8311",
    "FINETUNE_MLFLOW_URL": "http://127.0.0.1:8312",
}
BACKLOG = 2048  # connections that may wait to be accepted


def address(variable: str) -> str:
    """The URL in the environment variable, or its default, without a trailing slash."""
    if variable == "FINETUNE_MLFLOW_URL" and (server := mlflow_server()):
        return server
    return (os.environ.get(variable) or DEFAULTS[variable]).rstrip("/")


def mlflow_page(experiment_id: object = None, run_id: object = None) -> str:
    """The URL of an experiment or run in MLflow's UI; its front page where the experiment is not known."""
    page = address("FINETUNE_MLFLOW_URL")
    if experiment_id:
        page += f"/#/experiments/{experiment_id}" + (f"/runs/{run_id}" if run_id else "")
    return page


def mlflow_server() -> str | None:
    """The URL of an external MLflow server without credentials; None when the tracking URI is a database."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return without_credentials(uri).rstrip("/") if uri.startswith(("http://", "https://")) else None


def host_and_port(url: str) -> tuple[str, int]:
    """Host and port of a URL; 127.0.0.1, and 80 or 443, where it has none."""
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether `host` is a loopback address; False for a name other than localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def in_url(host: str) -> str:
    """The host as written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def listen(host: str, port: int, variable: str, server: str) -> socket.socket:
    """A listening socket for `server` ("the desk"). PortInUse names the address, the process that uses it (if the
    operating system reveals it), and the environment variable that sets another address."""
    bound = _bound(host, port, variable, server)
    bound.listen(BACKLOG)
    return bound


def require_free(variable: str, server: str) -> tuple[str, int]:
    """Host and port of `variable`. PortInUse when another process listens there already."""
    host, port = host_and_port(address(variable))
    with _bound(host, port, variable, server):
        return host, port


def _bound(host: str, port: int, variable: str, server: str) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host.strip("[]"), port))
    except OSError as error:
        bound.close()
        raise PortInUse(
            f"{server} cannot listen on {host}:{port}: {error.strerror or error}{_user_of(port)}",
            f"stop that process, or set another address: {variable}=http://{in_url(host)}:{port + 1000}",
        ) from error
    return bound


def _user_of(port: int) -> str:
    """The process that listens on the port, as " (used by NAME, process PID)"; "" if it cannot be found (it belongs to
    another user)."""
    try:
        connections = psutil.net_connections("tcp")
        found = [c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr[1:2] == (port,)]
        process = psutil.Process(found[0]) if found and found[0] else None
        return f" (used by {process.name()}, process {process.pid})" if process else ""
    except psutil.Error:
        return ""
