"""`finetune run`: materialize what is missing or stale, up to the experts' review.

The runs are in the Dagster instance, so that the UI shows them afterwards. They execute in this process: one import,
and Ctrl-C reaches them.
"""

import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from finetune_pipeline.config import Task
from finetune_pipeline.defs.assets import POOL
from finetune_pipeline.defs.automation import PREPARE, TRAFFIC, TRAIN, queue_tag
from finetune_pipeline.defs.reporter import Terminal, console
from finetune_pipeline.defs.run_monitoring import fail_dead_runs, tag
from finetune_pipeline.errors import FinetuneError, GateRefused
from finetune_pipeline.graph import STEPS
from finetune_pipeline.materialize import open_task, plan
from finetune_pipeline.review.waiting import require_review_complete
from finetune_pipeline.store import TaskStore, dagster_home, gate_hint, write_atomic

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def instance() -> dg.DagsterInstance:
    """The Dagster instance of $DAGSTER_HOME (default: in the home folder), made ready on first use.

    The project's dagster.yaml is copied there once. One that is there already is never changed.
    """
    home = dagster_home().absolute()
    home.mkdir(parents=True, exist_ok=True)
    settings, ours = home / "dagster.yaml", Path("dagster.yaml")
    if not (settings.exists() or settings.is_symlink()):
        # without any file Dagster uses its defaults too, and prints a warning at every call
        write_atomic(settings, ours.read_text("utf-8") if ours.exists() else "")
    os.environ["DAGSTER_HOME"] = str(home)
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    dagster = dg.DagsterInstance.get()
    _make_pool(dagster)
    return dagster


def _make_pool(dagster: dg.DagsterInstance) -> None:
    """Give the pool of the assets that compute its default limit. The daemon does so too, but only after it has started
    runs without a limit once."""
    pools, storage = dagster.get_concurrency_config().pool_config, dagster.event_log_storage
    limited = pools.default_pool_limit is not None and storage.supports_global_concurrency_limits
    if limited and POOL not in storage.get_concurrency_keys():
        storage.initialize_concurrency_limit_to_default(POOL)


def run_task(name: str, terminal: Terminal, until: str | None = None) -> None:
    """Materialize all of the task that is missing or stale, or what comes up to the asset `until`. Raises the stage's
    own error, GateRefused with the gate's reason, or WaitingForPeople when the experts have rows to review."""
    task, store = open_task(name)
    train = TRAIN if until is None else TRAIN[: TRAIN.index(until) + 1]
    traffic = TRAFFIC if until is None else []
    if not stale(task, store, [*PREPARE, *train, *traffic]):
        require_review_complete(task, store)
        _refuse_failed_gates(store, train if until else [])
        return
    from finetune_pipeline.definitions import build

    definitions = build([name])
    with instance() as dagster:
        fail_dead_runs(dagster)
        _run(dagster, definitions, task, store, "prepare", PREPARE, terminal)
        require_review_complete(task, store)
        _run(dagster, definitions, task, store, "train", train, terminal)
        _run(dagster, definitions, task, store, "traffic", traffic, terminal)


def stale(task: Task, store: TaskStore, among: Sequence[str]) -> list[str]:
    """The assets among these that are not made from what is there now, in the graph's order."""
    return [p.asset for p in plan(task, store) if p.state != "fresh" and p.asset in among]


def _run(
    dagster: dg.DagsterInstance,
    definitions: dg.Definitions,
    task: Task,
    store: TaskStore,
    part: str,
    assets: Sequence[str],
    terminal: Terminal,
) -> None:
    todo = stale(task, store, assets)
    if not todo:
        _refuse_failed_gates(store, assets)
        return
    heard, run_id = _Listener(terminal), str(uuid.uuid4())
    token = console.set(heard)
    try:
        result = definitions.resolve_job_def(f"{task.name}_{part}").execute_in_process(
            instance=dagster,
            asset_selection=[dg.AssetKey([task.name, asset]) for asset in todo],
            run_config=QUIET,
            raise_on_error=False,
            run_id=run_id,
            tags={**tag(run_id), **queue_tag(task.name, part)},
        )
    finally:
        console.reset(token)
    if heard.error is not None:
        raise heard.error
    if not result.success:
        _refuse_failed_gates(store, todo)
        raise GateRefused(f"the Dagster run {result.run_id} failed", "open it in the Dagster UI (`finetune up`)")


def _refuse_failed_gates(store: TaskStore, assets: Sequence[str]) -> None:
    """GateRefused for the first gate among these whose verdict is not passed."""
    for step in (s for s in STEPS if s.asset in assets and s.check and s.blocking):
        artifact = store.current(step.asset)
        if artifact is not None and artifact.verdict is not None and not artifact.verdict.passed:
            raise GateRefused(f"{step.asset} failed: {artifact.verdict.summary}", gate_hint(step.asset))


class _Listener:
    """Passes everything on to the terminal, and keeps the error that ended the run."""

    def __init__(self, terminal: Terminal) -> None:
        self.error: FinetuneError | None = None
        self.log, self.progress, self.alive = terminal.log, terminal.progress, terminal.alive
        self.begins, self.finished = terminal.begins, terminal.finished
        self._failed = terminal.failed

    def failed(self, asset: str, error: FinetuneError) -> None:
        self.error = error
        self._failed(asset, error)
