"""Make one asset of one task: find its inputs, check its gates, reuse an artifact with the same key, or make one.

    task, store = open_task("support_tickets")
    materialize("clean_examples", task, store)      # Artifact

Dagster, the command line and the tests all use it. The function of a stage is named in `graph.py`; it takes a
`StageContext` and returns a `StageResult`.
"""

from __future__ import annotations

import importlib
import json
import operator
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from finetune_pipeline.backends.peak_memory import PeakMemory
from finetune_pipeline.config import Task, load_task
from finetune_pipeline.config.section import Section
from finetune_pipeline.errors import GateRefused, unreadable
from finetune_pipeline.graph import BY_NAME, STEPS, Step
from finetune_pipeline.records import SILENT, Artifact, Json, Reporter, content_id
from finetune_pipeline.store import StageContext, StageResult, TaskStore, is_full, require_verdict, storage_error

State: TypeAlias = Literal["fresh", "stale", "missing"]


@dataclass(frozen=True)
class Plan:
    """The state of one asset: "fresh" (the current artifact is made from the current inputs), "stale" or "missing".
    `artifact` is the one that materializing would return if it exists, else the current one."""

    asset: str
    state: State
    artifact: Artifact | None
    key: str | None = None


@dataclass(frozen=True)
class Materialized:
    """An artifact and how it came about. `reused`: it was there already, made by an earlier run from the same inputs.
    `fingerprint`: what the step read beyond its inputs, as it is in the artifact's key."""

    artifact: Artifact
    reused: bool
    fingerprint: Json = ""


def open_task(name: str) -> tuple[Task, TaskStore]:
    """The declaration and the store of a task. DeclarationError when it is missing or invalid."""
    store = TaskStore(name)
    return load_task(store.root), store


def step_key(step: Step, task: Task, store: TaskStore, inputs: Mapping[str, Artifact]) -> str:
    """Hash of everything that decides the result: content of the inputs, sections of the declaration, code version,
    fingerprint of what the step reads beyond its inputs."""
    return _key(step, task, inputs, fingerprint(step, task, store))


def fingerprint(step: Step, task: Task, store: TaskStore) -> Json:
    """The fingerprint of what the step reads beyond its inputs; "" if nothing. StorageError when a file cannot be
    read."""
    try:
        beyond: Json = function(step.external.fingerprint)(task, store) if step.external else ""
    except OSError as error:
        raise unreadable(error.filename or f"what {step.asset} of {task.name} reads", error) from error
    return beyond


def _key(step: Step, task: Task, inputs: Mapping[str, Artifact], fingerprint: Json) -> str:
    beyond = fingerprint if isinstance(fingerprint, str) else json.dumps(fingerprint, sort_keys=True)
    made_from = [f"{name}={inputs[name].content_hash}" for name in sorted(inputs)]
    return content_id(
        step.asset, step.version, json.dumps(declared_values(step, task), sort_keys=True), beyond, *made_from
    )


def gather(step: Step, store: TaskStore) -> dict[str, Artifact] | str:
    """The current inputs of a step, or the name of the first that is missing."""
    inputs: dict[str, Artifact] = {}
    for name in step.needs:
        artifact = store.current(name)
        if artifact is None:
            return name
        inputs[name] = artifact
    return inputs


def materialize(asset: str, task: Task, store: TaskStore, report: Reporter = SILENT, force: bool = False) -> Artifact:
    """The artifact made from the current inputs: `materialize_or_reuse` without how it came about."""
    return materialize_or_reuse(asset, task, store, report, force).artifact


def materialize_or_reuse(
    asset: str, task: Task, store: TaskStore, report: Reporter = SILENT, force: bool = False
) -> Materialized:
    """Returns the artifact made from the current inputs; makes it only if it does not exist yet, or with `force`. A
    forced artifact never replaces the files of an earlier one, which may be served (records/revisions.py).

    GateRefused when an input is missing, or a required gate did not pass for exactly this content under the current
    declaration. StorageError when a file of an input was changed by hand, or the disk is full. Errors of the stage
    (errors.py) are passed on. Nothing is stored unless the stage's function returned.
    """
    step = BY_NAME[asset]
    inputs = gather(step, store)
    if isinstance(inputs, str):
        raise GateRefused(f"{asset} needs {inputs}, which has not been made yet", f"materialize {inputs} first")
    for gate, about in step.gates:
        checked = inputs.get(about) or store.current(about)
        if checked is None:
            raise GateRefused(f"{asset} needs {about}, which has not been made yet", f"materialize {about} first")
        _require_same_rules(require_verdict(store.current(gate), gate, checked), task)
    with store.lock(asset, report):  # of two runs of a task at the same time, the second reuses what the first made
        beyond = fingerprint(step, task, store)  # computed once, so that the key describes what the stage reads
        key = _key(step, task, inputs, beyond)
        found = None if force else store.latest(asset, key)
        if found is None:
            return Materialized(_make(step, task, store, inputs, key, beyond, report), False, beyond)
        store.point(found)
        return Materialized(found, True, beyond)


def _require_same_rules(gate: Artifact, task: Task) -> None:
    """GateRefused if the verdict was given under other thresholds: the declaration may be stricter now."""
    then = gate.manifest.get("declaration", {})
    changed = [
        f"`{name}`" for name, now in declared_values(BY_NAME[gate.asset], task).items() if then.get(name, now) != now
    ]
    if changed:
        raise GateRefused(
            f"Gate {gate.asset} used other settings: {' and '.join(changed)} in task.yaml changed since",
            f"materialize {gate.asset} again",
        )


def _make(
    step: Step,
    task: Task,
    store: TaskStore,
    inputs: Mapping[str, Artifact],
    key: str,
    fingerprint: Json,
    report: Reporter,
) -> Artifact:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.perf_counter()
    for artifact in inputs.values():
        store.verify(artifact)
    with store.scratch(step.asset) as out:
        context = StageContext(task, store, inputs, out, key, now, report, fingerprint)
        try:
            with PeakMemory() as peak:
                result: StageResult = function(step.make)(context)
        except OSError as error:
            if is_full(error):
                raise storage_error(error, str(out)) from error
            raise
        facts = {
            "made_at": now,
            "seconds": round(time.perf_counter() - start, 3),
            "peak_mb": round(peak.mb),
            "code": step.version,
            "fingerprint": fingerprint,
            "inputs": {name: a.content_hash for name, a in inputs.items()},
            "declaration": declared_values(step, task),
            "summary": dict(result.summary),
            "verdict": result.verdict.to_json() if result.verdict else None,
        }
        artifact = store.commit(step.asset, key, out, facts)
        if result.unfinished:  # only after the commit: on a full disk or after a kill, the next run continues from it
            shutil.rmtree(result.unfinished, ignore_errors=True)
        return artifact


def plan(task: Task, store: TaskStore) -> list[Plan]:
    """The state of every asset, in the order of the graph. Makes nothing."""
    plans: list[Plan] = []
    known: dict[str, Artifact] = {}
    for step in STEPS:
        artifact = store.current(step.asset)
        if all(name in known for name in step.needs):
            key = step_key(step, task, store, {name: known[name] for name in step.needs})
            fresh = artifact is not None and artifact.inputs_key == key
            found = artifact if fresh else store.latest(step.asset, key)
            state: State = "fresh" if fresh else "stale" if artifact else "missing"
            if found:
                known[step.asset] = found
            plans.append(Plan(step.asset, state, found or artifact, key))
        else:
            plans.append(Plan(step.asset, "stale" if artifact else "missing", artifact))
    return plans


def declared_values(step: Step, task: Task) -> dict[str, Any]:
    """The sections of the declaration, and single settings ("serve.precision"), that change a step's result, as plain
    values for the manifest."""
    values = {name: _plain(operator.attrgetter(name)(task)) for name in step.config_sections}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def _plain(section: Any) -> Any:
    if isinstance(section, tuple):
        return [_plain(item) for item in section]
    return section.result_values() if isinstance(section, Section) else section


def function(dotted: str) -> Callable[..., Any]:
    module, name = dotted.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
