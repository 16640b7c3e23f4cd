"""What Ray and Kubernetes have in common: the environment that a job gets, and the wait for its end.

Secrets are not forwarded: the machines of a cluster have their own environment, or a Kubernetes Secret.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from urllib.parse import urlsplit

RETRY_LOG = "a machine of the job was lost; restart {number} of the job, from its last checkpoint"
POLL_SECONDS = 0.5


def forwarded() -> dict[str, str]:
    """The variables of this process that a job on a cluster needs: the address of MLflow, if no password is in it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return {"MLFLOW_TRACKING_URI": uri} if uri and urlsplit(uri).password is None else {}


def wait_for_end(ended: Callable[[], bool], silent: Callable[[], bool]) -> None:
    """Wait until a canceled job has ended, or nothing was heard of its machines for the time of `silent`."""
    while not ended() and not silent():
        time.sleep(POLL_SECONDS)
