"""What Ray and Kubernetes have in common: the environment that a job gets, and the wait for its end.

    forwarded(Path("/data"))     # {"FINETUNE_HOME": "/data/home", "MLFLOW_TRACKING_URI": "https://mlflow.example.com"}

Secrets are not forwarded: the machines of a cluster have their own environment, or a Kubernetes Secret.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from finetune_pipeline.config.credentials import FILES, without_credentials
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.store import home

ADDRESS = "MLFLOW_TRACKING_URI"
SERVER_HINT = (
    f"set {ADDRESS} to a server that all machines reach; its user and password belong into MLFLOW_TRACKING_USERNAME "
    "and MLFLOW_TRACKING_PASSWORD of the cluster's own environment, or of the Kubernetes Secret"
)
RETRY_LOG = "a machine of the job was lost; restart {number} of the job, from its last checkpoint"
POLL_SECONDS = 0.5


def forwarded(shared: Path, own_address: bool) -> dict[str, str]:
    """The variables of this process that a job on a cluster needs: the home folder, in which records wait for MLflow,
    and MLflow's address where one is set.

    `shared`: the folder that all machines have under the same path. `own_address`: whether the environment of the job
    gives an address of MLflow, which counts where this process's must not be handed over. TrainingFailed where the job
    would keep its records in a place that is lost with its machine.
    """
    if not home().is_relative_to(shared):
        raise TrainingFailed(
            f"the home folder {home()} is not below {shared}, which all machines of the job share",
            "set $FINETUNE_HOME to a folder of the shared volume: records for MLflow and base models are in it",
        )
    variables, uri = {"FINETUNE_HOME": str(home())}, os.environ.get(ADDRESS, "")
    if has_credentials(uri):
        if own_address:
            return variables
        raise TrainingFailed(f"{ADDRESS} has a user or a password in it, which is not handed to a cluster", SERVER_HINT)
    file = _file(uri)
    if file is not None and not file.is_relative_to(shared):
        raise TrainingFailed(f"{ADDRESS} is {uri}: a file that the machines of the job do not see", SERVER_HINT)
    return {**variables, ADDRESS: uri} if uri else variables


def has_credentials(uri: str) -> bool:
    """Whether a user, a password or a token is in the URI, before its host or in its query."""
    return without_credentials(uri) != uri


def _file(uri: str) -> Path | None:
    """The file or folder that an address of MLflow names; None for a server."""
    if uri.startswith(FILES):
        rest = uri.partition(":")[2].partition("?")[0]
        return Path(rest.removeprefix("///" if uri.startswith("sqlite") else "//"))
    return Path(uri) if uri.startswith((".", "/")) else None


def wait_for_end(ended: Callable[[], bool], silent: Callable[[], bool]) -> None:
    """Wait until a canceled job has ended, or nothing was heard of its machines for the time of `silent`."""
    while not ended() and not silent():
        time.sleep(POLL_SECONDS)
