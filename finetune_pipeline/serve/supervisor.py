"""Makes the running endpoint serve the desired state: polls every task's deployment_state.json each second.

    deployment_state.json: version 4     find and verify its files, load them, then replace the whole routing table:
    routes so far: version 3             running requests end on 3, new ones go to 4; then 3 is unloaded

Both may be of any kind: an adapter on a base model, on the same in 4 bits, or full weights, which one engine of this
process computes for all tasks (embedded_chat.py); or a provider's model, which has an engine that forwards to it
(provider_chat.py).

There is no restart, and no request fails or changes its version. A version that cannot be served (a file is missing or
changed, the adapter does not fit) leaves the version before it in place; the error is in /version under `errors`, in
the log and in the metrics. It is tried again when the desired state changes, and every 30 seconds.

The desired state is written by assets.py and rollback.py.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

from finetune_pipeline.errors import FinetuneError, StorageError
from finetune_pipeline.providers.record import ProviderModel
from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.deployment_state import Version
from finetune_pipeline.serve.embedded_chat import load_embedded
from finetune_pipeline.serve.engine import Engine
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.model_routes import Route, VersionArtifacts, VersionModels, find_artifacts, make_route
from finetune_pipeline.serve.provider_chat import load_forwarded
from finetune_pipeline.serve.provider_engine import ProviderEngine
from finetune_pipeline.serve.routing_table import RoutingTable, ServingStatus, build_table
from finetune_pipeline.serve.serving_engine import ServingEngine
from finetune_pipeline.store import TaskStore, task_names

POLL_SECONDS = 1.0
RETRY_SECONDS = 30.0
log = logging.getLogger("finetune.supervisor")


class Supervisor:
    """`only`: serve this task only. `engine` holds the models of all tasks, but those of providers."""

    def __init__(self, metrics: Metrics, only: str | None = None) -> None:
        self.table = RoutingTable()
        self.ready = threading.Event()
        self.rounds = 0  # completed; two rounds after a desired state was written, it has been read
        self.engine = Engine()
        self._forwarding: dict[str, ProviderEngine] = {}  # by adapter; replaced, not changed: other threads read it
        self._metrics, self._only = metrics, only
        self._failed: dict[tuple[str, Version], tuple[str, float]] = {}
        self._last_error = ""  # of the last round: logged once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def abort(self) -> None:
        """End every running request with an error: the endpoint is about to end."""
        for engine in self.engines:
            engine.abort()

    def stop(self) -> None:
        """End the polling and every engine, after its present step."""
        self._stop.set()
        self._thread.join(1.0)  # it takes longer while a model is loaded
        for engine in self.engines:
            engine.stop()

    @property
    def engines(self) -> list[ServingEngine]:
        """The one of this process, and one for each provider's model that is served."""
        return [self.engine, *self._forwarding.values()]

    @property
    def is_alive(self) -> bool:
        """Whether a thread has not ended: one that computes or loads does not notice the stop."""
        return self._thread.is_alive() or any(engine.is_alive for engine in self.engines)

    @property
    def failing_tasks(self) -> int:
        """The number of tasks whose desired state cannot be served in full."""
        return sum(bool(status.errors) for status in self.table.tasks.values())

    @property
    def steps(self) -> int:
        """Steps of all engines."""
        return sum(engine.steps for engine in self.engines)

    def busy(self) -> tuple[int, int]:
        """Requests running and waiting, of all engines."""
        counts = [engine.busy for engine in self.engines]
        return sum(running for running, _ in counts), sum(waiting for _, waiting in counts)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.converge()
                self._last_error = ""
            except StorageError as error:  # the data root cannot be read: the present table stays
                if self._last_error != str(error):
                    log.error("%s", error)
                self._last_error = str(error)
            except Exception:  # any: the thread must not end; the next round tries again
                log.exception("the desired states could not be applied; trying again in %s s", POLL_SECONDS)
            self.rounds += 1
            self.ready.set()
            self._stop.wait(POLL_SECONDS)

    def converge(self) -> None:
        """One round: read every desired state, and serve it as far as possible."""
        names = [self._only] if self._only else task_names()
        before = self.table
        table = build_table({name: self._update_task(name, before.tasks.get(name, ServingStatus())) for name in names})
        if table.tasks != before.tasks:
            self.table = table
            self._report_errors(before)
        self._unload_unused()

    def _update_task(self, task: str, now: ServingStatus) -> ServingStatus:
        """`_update_status`, where no failure of any kind (an unforeseen manifest) affects another task."""
        try:
            return self._update_status(task, now)
        except Exception as error:
            errors = {"state": f"{type(error).__name__}: {error}"}
            if now.errors != errors:  # logged once, not each round
                log.exception("%s: its desired state cannot be applied", task)
            return replace(now, errors=errors)

    def _update_status(self, task: str, now: ServingStatus) -> ServingStatus:
        """The task's status after its desired state was read and, as far as possible, loaded."""
        store = TaskStore(task)
        try:
            desired = deployment_state.read(store)
        except (FinetuneError, OSError) as error:
            return replace(now, errors={"state": str(error)})
        errors: dict[str, str] = {}
        champion = self._route_for(store, "champion", desired.champion, now.champion, errors)
        challenger = self._route_for(store, "challenger", desired.challenger, now.challenger, errors)
        if "challenger" in errors:
            challenger = None  # the old challenger must not answer under the new one's name
        return ServingStatus(champion, challenger, desired, errors)

    def _report_errors(self, before: RoutingTable) -> None:
        """Log and count each new error once."""
        for task, status in self.table.tasks.items():
            known = before.tasks.get(task, ServingStatus()).errors
            for subject, error in status.errors.items():
                if known.get(subject) != error:
                    log.error("%s: %s: %s", task, subject, error)
                    self._metrics.deploy_errors.labels(task).inc()

    def _route_for(
        self, store: TaskStore, role: str, version: Version | None, now: Route | None, errors: dict[str, str]
    ) -> Route | None:
        """The route for the desired `version`; if it cannot be loaded, the present route, and the error in `errors`."""
        if version is None or (now is not None and is_current(now, version)):
            return now if version else None
        message, retry_at = self._failed.get((store.task, version), ("", 0.0))
        if time.monotonic() >= retry_at:
            try:
                route = self._load(store, version)
                self._failed.pop((store.task, version), None)
                log.info("%s: version %s is loaded (adapter %s)", store.task, version.version, version.adapter)
                return route
            except Exception as error:  # noqa: BLE001 - a damaged artifact may raise any; the present route stays
                if not isinstance(error, FinetuneError | OSError):
                    error = StorageError(f"{type(error).__name__}: {error}", "make the artifact again: `finetune run`")
                message = f"version {version.version} cannot be served: {error}"
                self._failed[store.task, version] = message, time.monotonic() + RETRY_SECONDS
        errors[role] = message
        return now

    def _load(self, store: TaskStore, version: Version) -> Route:
        artifacts = find_artifacts(store, version)
        models = self._load_models(version, artifacts)
        return make_route(store, version, artifacts, models, datetime.now(UTC).isoformat(timespec="seconds"))

    def _load_models(self, version: Version, artifacts: VersionArtifacts) -> VersionModels:
        if artifacts.provider is not None:
            return load_forwarded(self._engine_of(artifacts.provider, version.adapter), version)
        return load_embedded(self.engine, version, artifacts)

    def _engine_of(self, provider: ProviderModel, adapter: str) -> ProviderEngine:
        """The engine that forwards to this model; made with its first version."""
        if adapter not in self._forwarding:
            self._forwarding = {**self._forwarding, adapter: ProviderEngine(provider)}
        return self._forwarding[adapter]

    def _unload_unused(self) -> None:
        """Unload the models that no route uses any more, and those of a version that could be loaded only in part."""
        statuses = self.table.tasks.values()
        served = [route for status in statuses for route in (status.champion, status.challenger) if route]
        routes = [*served, *self.table.routes.values()]
        used = {(route.engine, model) for route in routes for model in (route.id, route.base)}
        for engine in self.engines:
            for model in engine.models.loaded:
                if (engine, model) not in used:
                    engine.models.unload(model)
                    if model.adapter is not None:
                        log.info("adapter %s is unloaded after its last request", model.adapter)
        if not all(engine.models.needed for engine in self._forwarding.values()):
            self._forwarding = {key: engine for key, engine in self._forwarding.items() if engine.models.needed}


def is_current(route: Route, version: Version) -> bool:
    """Whether this route serves this version with these settings."""
    settings = (version.served_as, version.on_invalid, version.log_text, version.max_new_tokens, version.precision)
    same_model = (route.version, route.adapter) == (version.version, version.adapter)
    served = (route.model, route.on_invalid, route.log_text, route.max_new_tokens, route.precision)
    return same_model and served == settings
