"""Deliver what trainings left (`delivery.sync`) in a process of its own, so that no server or sensor waits for MLflow.

    start()      # None: there is nothing to deliver, and no process

Its output is <home>/logs/sync.log. It imports MLflow, which takes seconds and memory; this module does not.
"""

from __future__ import annotations

import subprocess
import sys

from finetune_pipeline.backends.local import job_environment
from finetune_pipeline.errors import StorageError
from finetune_pipeline.store import home
from finetune_pipeline.tracking.delivery import pending, sync


def start() -> subprocess.Popen[bytes] | None:
    """Start the process if a run waits. Several at a time share the work: each run is delivered by one."""
    if not pending():
        return None
    log = home() / "logs" / "sync.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "finetune_pipeline.tracking.background"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=job_environment(),
            start_new_session=True,
        )


if __name__ == "__main__":
    try:
        sync(print)
    except StorageError as error:
        sys.exit(str(error))
