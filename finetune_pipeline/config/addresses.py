"""Where the four servers listen, from the environment; loopback and fixed ports by default.

FINETUNE_DAGSTER_URL   http://127.0.0.1:3000     Dagster's UI
FINETUNE_DESK_URL      http://127.0.0.1:8310     the desk (review, reports)
FINETUNE_ENDPOINT      http://127.0.0.1:8311     the OpenAI-compatible endpoint
FINETUNE_MLFLOW_URL    http://127.0.0.1:8312     MLflow's UI; where $MLFLOW_TRACKING_URI names a server, that one
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
    "FINETUNE_ENDPOINT": "http://127.0.0.1:8311",
    "FINETUNE_MLFLOW_URL": "http://127.0.0.1:8312",
}
BACKLOG = 2048  # connections that wait to be accepted


def address(variable: str) -> str:
    """The URL that `variable` names, without a slash at its end."""
    if variable == "FINETUNE_MLFLOW_URL" and (server := mlflow_server()):
        return server
    return (os.environ.get(variable) or DEFAULTS[variable]).rstrip("/")


def mlflow_server() -> str | None:
    """The URL of an MLflow server that runs elsewhere, as it may be shown; None where MLflow is a database of ours."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return without_credentials(uri).rstrip("/") if uri.startswith(("http://", "https://")) else None


def host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; False for a name other than localhost."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def in_url(host: str) -> str:
    """The host as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def listen(host: str, port: int, variable: str, server: str) -> socket.socket:
    """A socket that listens. PortInUse names the address, the process that has it (where the system tells), and the
    `variable` that sets another address for `server` ("the desk")."""
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
            f"stop what listens there, or choose another address: {variable}=http://{in_url(host)}:{port + 1000}",
        ) from error
    return bound


def _user_of(port: int) -> str:
    """Which process listens on the port, in words; "" where the system does not tell (other users' processes)."""
    try:
        connections = psutil.net_connections("tcp")
        found = [c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr[1:2] == (port,)]
        process = psutil.Process(found[0]) if found and found[0] else None
        return f" (used by {process.name()}, process {process.pid})" if process else ""
    except psutil.Error:
        return ""
