"""A stage's progress in Dagster: log lines, plots while it runs, and the end of a canceled run.

`console` is the terminal's reporter where the run was started by the `finetune` command in this process.
"""

import time
from contextvars import ContextVar
from typing import Protocol

import dagster as dg

from finetune_pipeline.errors import FinetuneError, JobCanceled
from finetune_pipeline.records import SILENT, Artifact, Reporter


class Terminal(Reporter, Protocol):
    """A reporter that also gets the end of each asset."""

    def begins(self, asset: str) -> None: ...

    def finished(self, asset: str, artifact: Artifact) -> None: ...

    def failed(self, asset: str, error: FinetuneError) -> None: ...


console: ContextVar[Terminal | None] = ContextVar("console", default=None)

LOG_SECONDS = 10.0
PLOT_SECONDS = 30.0
ALIVE_SECONDS = 5.0


class DagsterReporter:
    """A reporter over a Dagster context; progress is logged at intervals, since each is a row in a database."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._console = console.get() or SILENT
        self._logged = self._plotted = self._asked = time.monotonic()

    def log(self, text: str) -> None:
        self._context.log.info(text)
        self._console.log(text)

    def progress(self, what: str, done: int, total: int, **figures: float) -> None:
        self._console.progress(what, done, total, **figures)
        now = time.monotonic()
        if done >= total or now - self._logged > LOG_SECONDS:
            self._logged = now
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            self._context.log.info(f"{what}: {done} of {total}" + (f" ({shown})" if shown else ""))
        if figures and (done >= total or now - self._plotted > PLOT_SECONDS):
            self._plotted = now
            metadata = {f"{what}/{name}": float(value) for name, value in figures.items()}
            self._context.log_event(dg.AssetObservation(asset_key=self._context.asset_key, metadata=metadata))

    def alive(self) -> None:
        """Raise JobCanceled when the run was force-terminated in the UI, or its worker died."""
        self._console.alive()
        if time.monotonic() - self._asked < ALIVE_SECONDS:
            return
        self._asked = time.monotonic()
        run = self._context.instance.get_run_by_id(self._context.run_id)
        if run is None or run.is_finished:
            raise JobCanceled(f"run {self._context.run_id} is over", "start it again to go on from the last checkpoint")
