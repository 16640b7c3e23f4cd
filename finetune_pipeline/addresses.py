"""Where the four servers listen, from the environment; loopback and fixed ports by default.

FINETUNE_DAGSTER_URL   http://127.0.0.1:3000     Dagster's UI
FINETUNE_DESK_URL      http://127.0.0.1:8310     the desk (review, reports)
FINETUNE_ENDPOINT      http://127.0.0.1:8311     the OpenAI-compatible endpoint
FINETUNE_MLFLOW_URL    http://127.0.0.1:8312     MLflow's UI; where $MLFLOW_TRACKING_URI names a server, that one
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from finetune_pipeline.errors import PortInUse

DEFAULTS = {
    "FINETUNE_DAGSTER_URL": "http://127.0.0.1:3000",
    "FINETUNE_DESK_URL": "http://127.0.0.1:8310",
    "FINETUNE_ENDPOINT": "http://127.0.0.1:8311",
    "FINETUNE_MLFLOW_URL": "http://127.0.0.1:8312",
}


def address(variable: str) -> str:
    """The URL that `variable` names, without a slash at its end."""
    if variable == "FINETUNE_MLFLOW_URL" and (server := mlflow_server()):
        return server
    return (os.environ.get(variable) or DEFAULTS[variable]).rstrip("/")


def mlflow_server() -> str | None:
    """The URL of an MLflow server that runs elsewhere, as it may be shown; None where MLflow is a database of ours."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return without_credentials(uri).rstrip("/") if uri.startswith(("http://", "https://")) else None


def without_credentials(uri: str) -> str:
    """The URI without user and password: for messages and process lists."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)


def require_free(variable: str, what: str) -> tuple[str, int]:
    """Host and port of `variable`; PortInUse when somebody listens there already."""
    host, port = host_and_port(address(variable))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"{what} cannot listen on {host}:{port}: {error.strerror}",
                f"stop what listens there, or choose another address: {variable}=http://{host}:{port + 1000}",
            ) from error
    return host, port
