"""Makes the running endpoint serve what is desired: reads every task's deployment_state.json each second, and
converges.

    deployment_state.json says version 4          this thread: finds and verifies the adapter, loads it, then swaps the
    table of
    (routes so far: version 3)           routes as a whole; requests in flight end on 3, new ones go to 4; 3 is unloaded

No restart, no request refused or mixed. What cannot be served (a file missing, changed, an adapter that does not fit)
leaves the version before it in place, and stands under `errors` in /version, in the log and in the metrics; it is tried
again when the desired state changes, and every half minute.

What it is not: the one who decides (assets.py and deployment_state.rollback write the desired state), or HTTP (app.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from finetune_pipeline.errors import FinetuneError, StorageError
from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.deployment_state import Desired, Version
from finetune_pipeline.serve.engine import Engine
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.model_routes import BASE, Found, Route, base_folder, find, route
from finetune_pipeline.store import TaskStore, task_names

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0
log = logging.getLogger("finetune.supervisor")


@dataclass(frozen=True, slots=True)
class ServingStatus:
    """Where one task stands in this process: the routes it has, and why what is desired is missing: errors by what they
    concern (champion, challenger, name, state)."""

    champion: Route | None = None
    challenger: Route | None = None
    desired: Desired = field(default_factory=Desired)
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """Everything the endpoint serves at one moment; replaced as a whole, never changed."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    tasks: Mapping[str, ServingStatus] = field(default_factory=dict)


class Supervisor:
    """`only`: serve this task alone. `make_engine` is the way from a folder to an engine."""

    def __init__(self, metrics: Metrics, only: str | None = None, make_engine: Callable[..., Engine] = Engine) -> None:
        self.table = Table()
        self.ready = threading.Event()
        self.rounds = 0  # completed; whoever wrote a desired state knows after two that it was read
        self._metrics, self._only, self._make_engine = metrics, only, make_engine
        self._engines: dict[str, Engine] = {}
        self._failed: dict[tuple[str, Version], tuple[str, float]] = {}
        self._said = ""  # the error of the last round, which is told once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def give_up(self) -> None:
        """Give every request under way an error: the endpoint is about to end."""
        for engine in list(self._engines.values()):
            engine.give_up()

    def stop(self) -> None:
        """End the polling and every engine, after what each computes at the moment."""
        self._stop.set()
        self._thread.join(1.0)  # longer while it loads a model
        for engine in list(self._engines.values()):
            engine.stop()

    @property
    def computes(self) -> bool:
        """Whether a thread has not ended: one that computes or loads does not notice that it should."""
        return self._thread.is_alive() or any(engine.computes for engine in list(self._engines.values()))

    @property
    def failing(self) -> int:
        """Tasks of which something that is desired cannot be served."""
        return sum(bool(standing.errors) for standing in self.table.tasks.values())

    @property
    def steps(self) -> int:
        """Forward passes of all engines."""
        return sum(engine.steps for engine in list(self._engines.values()))

    def busy(self) -> tuple[int, int]:
        """Requests running and waiting, of all engines."""
        counts = [engine.busy for engine in list(self._engines.values())]
        return sum(running for running, _ in counts), sum(waiting for _, waiting in counts)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.converge()
                self._said = ""
            except StorageError as error:  # the data root cannot be read: what is served goes on
                if self._said != str(error):
                    log.error("%s", error)
                self._said = str(error)
            except Exception:  # the thread has to live: whatever it was, the next round may do better
                log.exception("the desired states could not be applied")
            self.rounds += 1
            self.ready.set()
            self._stop.wait(POLL_SECONDS)

    def converge(self) -> None:
        """One round: after it the table is what is desired, as far as it can be served."""
        names = [self._only] if self._only else task_names()
        before = self.table
        tasks = {name: self._one(name, before.tasks.get(name, ServingStatus())) for name in names}
        tasks, routes = named(tasks)
        if tasks != before.tasks:
            self.table = Table(routes, tasks)
            self._tell(before)
        self._drop_unused(before)

    def _one(self, task: str, now: ServingStatus) -> ServingStatus:
        """`_update_status`, of which no failure concerns another task, whatever it is (a manifest nobody foresaw)."""
        try:
            return self._update_status(task, now)
        except Exception as error:
            errors = {"state": f"{type(error).__name__}: {error}"}
            if now.errors != errors:  # a round later it is no news
                log.exception("%s: its desired state cannot be applied", task)
            return replace(now, errors=errors)

    def _update_status(self, task: str, now: ServingStatus) -> ServingStatus:
        """Where the task stands after its desired state was read and, as far as possible, loaded."""
        store = TaskStore(task)
        try:
            state = deployment_state.read(store)
        except (FinetuneError, OSError) as error:
            return replace(now, errors={"state": str(error)})
        errors: dict[str, str] = {}
        champion = self._serve(store, "champion", state.champion, now.champion, errors)
        challenger = self._serve(store, "challenger", state.challenger, now.challenger, errors)
        if "challenger" in errors:
            challenger = None  # an old challenger must not answer for the new one
        return ServingStatus(champion, challenger, state, errors)

    def _tell(self, before: Table) -> None:
        """Each new error once, in the log and in the metrics."""
        for task, standing in self.table.tasks.items():
            known = before.tasks.get(task, ServingStatus()).errors
            for what, error in standing.errors.items():
                if known.get(what) != error:
                    log.error("%s: %s: %s", task, what, error)
                    self._metrics.deploy_errors.labels(task).inc()

    def _serve(
        self, store: TaskStore, role: str, wanted: Version | None, now: Route | None, errors: dict[str, str]
    ) -> Route | None:
        """The route for `wanted`; where that fails, the one there is now, and the reason in `errors`."""
        if wanted is None or (now is not None and serves(now, wanted)):
            return now if wanted else None
        reason, again = self._failed.get((store.task, wanted), ("", 0.0))
        if time.monotonic() >= again:
            try:
                fresh = self._load(store, wanted)
                self._failed.pop((store.task, wanted), None)
                log.info("%s: version %s is loaded (adapter %s)", store.task, wanted.version, wanted.adapter)
                return fresh
            except Exception as error:  # noqa: BLE001 - a damaged artifact may raise anything; the task keeps what it has
                if not isinstance(error, FinetuneError | OSError):
                    error = StorageError(f"{type(error).__name__}: {error}", "make the artifact again: `finetune run`")
                reason = f"version {wanted.version} cannot be served: {error}"
                self._failed[store.task, wanted] = reason, time.monotonic() + RETRY_SECONDS
        errors[role] = reason
        return now

    def _load(self, store: TaskStore, wanted: Version) -> Route:
        found = find(store, wanted)
        engine = self._engine(found)
        engine.load(wanted.adapter, found.adapter.folder)
        return route(store, wanted, found, engine, datetime.now(UTC).isoformat(timespec="seconds"))

    def _engine(self, found: Found) -> Engine:
        if found.weights not in self._engines:
            self._engines[found.weights] = self._make_engine(base_folder(found))
        return self._engines[found.weights]

    def _drop_unused(self, before: Table) -> None:
        """Unload adapters that no name leads to any more, and base models that none of the tasks needs."""
        used = {(r.engine, r.adapter) for r in self.table.routes.values()}
        for engine, adapter in {(r.engine, r.adapter) for r in before.routes.values()} - used:
            if adapter is not None:
                engine.unload(adapter)
                log.info("adapter %s is unloaded as soon as its last request has ended", adapter)
        needed = {engine for engine, _ in used}
        for weights, engine in list(self._engines.items()):
            if engine not in needed and engine.busy == (0, 0):
                del self._engines[weights]
                engine.stop()


def serves(now: Route, wanted: Version) -> bool:
    """Whether this route is what is wanted, settings included."""
    settings = (wanted.served_as, wanted.on_invalid, wanted.log_text, wanted.max_new_tokens)
    same = (now.version, now.adapter) == (wanted.version, wanted.adapter)
    return same and (now.model, now.on_invalid, now.log_text, now.max_new_tokens) == settings


def named(tasks: Mapping[str, ServingStatus]) -> tuple[dict[str, ServingStatus], dict[str, Route]]:
    """All model names of these tasks. Where two want one name, the first in the alphabet has it, the other an error."""
    standings, routes = dict(tasks), dict[str, Route]()
    engines: dict[Engine, Route] = {}
    for task, standing in tasks.items():
        for one, pinned in ((standing.champion, False), (standing.challenger, True)):
            if one is None:
                continue
            if one.model == BASE or "@" in one.model or (one.model in routes and routes[one.model].task != task):
                error = f"the name {one.model!r} is taken; declare another one as `serve.alias`"
                standings[task] = replace(standing, errors={**standing.errors, "name": error})
                continue
            engines.setdefault(one.engine, one)
            routes |= {name.model: name for name in names_of(one) if not (pinned and name.model == one.model)}
    if len(engines) == 1:
        only = next(iter(engines.values()))
        routes[BASE] = replace(_base_of(only), model=BASE, task="", system="", prefix_ids=(), answer=None, check=False)
    return standings, routes


def names_of(one: Route) -> list[Route]:
    """The route under each of its names."""
    versioned = replace(one, model=f"{one.model}@{one.version}", check=True, on_invalid="flag")
    base = replace(_base_of(one), model=f"{one.model}@{BASE}", check=True)
    return [one, versioned, base]


def _base_of(one: Route) -> Route:
    return replace(one, version=0, adapter=None, on_invalid="flag")


def serving_status_json(standing: ServingStatus) -> dict[str, Any]:
    """A task's line in /version."""

    def shown(one: Route | None) -> dict[str, Any] | None:
        return None if one is None else {"version": one.version, "adapter": one.adapter, "since": one.since}

    state = standing.desired
    return {
        "served_as": standing.champion.model if standing.champion else None,
        "champion": shown(standing.champion),
        "challenger": shown(standing.challenger),
        "desired": {
            role: deployment_state.plain(version) if version else None
            for role, version in (("champion", state.champion), ("challenger", state.challenger))
        },
        "errors": dict(standing.errors),
    }
