"""The deployment state of a task, written by the pipeline and read by every endpoint: which version is served.

    11_serve/deployment_state.json
    {"champion": {"version": 4, "adapter": "9be0…", "adapter_key": "3fa9…", "base": "77c1…", "registered": "0d2e…",
                  "evaluation": "51aa…", "served_as": "support_tickets", "max_new_tokens": 64, "on_invalid": "flag",
                  "log_text": true, "at": "2026-01-05T10:00:00+00:00", "precision": "auto"},
     "challenger": null, "previous": [{"version": 3, …}], "held": {"c41d…": "version 5 was rolled back at 2026-…"},
     "history": [{"at": "2026-…", "action": "promote", "before": "e07b…", "after": "0d2e…", "version": 4,
                  "reason": ""}]}

The endpoint follows this file and the adapter's own manifest, not task.yaml: an edited declaration reaches the traffic
only through the pipeline and its parity check.

How the state changes: transitions.py. The commands for people: rollback.py. MLflow's alias `champion` follows this
file; nothing that serves reads the alias.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict, cast

from filelock import FileLock
from upath import UPath

from finetune_pipeline.config import OnInvalid, Precision
from finetune_pipeline.errors import reading
from finetune_pipeline.store import TaskStore, home, write_atomic

Action = Literal["promote", "rollback", "settings", "unhold"]
Role = Literal["champion", "challenger"]
Unknown = tuple[tuple[str, str], ...]
"""Fields that a newer release wrote, as names and JSON texts: kept where the file is written again."""


@dataclass(frozen=True, slots=True)
class Version:
    """One registered model and its serving settings. `adapter`, `base`, `registered` and `evaluation` are content
    hashes; `adapter_key` finds the artifact; `max_new_tokens` is the limit of an answer and `precision` that of the
    computation, as in the evaluation; `at` is when it was written here (UTC, ISO 8601)."""

    version: int
    adapter: str
    adapter_key: str
    base: str
    registered: str
    evaluation: str
    served_as: str
    max_new_tokens: int
    on_invalid: OnInvalid
    log_text: bool
    at: str
    precision: Precision = "auto"
    unknown: Unknown = ()


class VersionRecord(TypedDict):
    """A `Version` as JSON: here, in endpoint.json, and in GET /version. It may have fields of a newer release, too."""

    version: int
    adapter: str
    adapter_key: str
    base: str
    registered: str
    evaluation: str
    served_as: str
    max_new_tokens: int
    on_invalid: OnInvalid
    log_text: bool
    at: str
    precision: Precision


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One transition. `before` and `after` are `registered` hashes of the champion before and after it."""

    at: str
    action: Action
    before: str | None
    after: str | None
    version: int
    reason: str = ""
    unknown: Unknown = ()


@dataclass(frozen=True, slots=True)
class DeploymentState:
    """The desired state. `previous` holds the earlier champions, newest first, for rollback; `held` maps the content
    hash of an adapter to the reason why it is not deployed again without `finetune unhold`."""

    champion: Version | None = None
    challenger: Version | None = None
    previous: tuple[Version, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    history: tuple[HistoryEntry, ...] = ()
    unknown: Unknown = ()

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> DeploymentState:
        def version(raw: Mapping[str, Any] | None) -> Version | None:
            return Version(**_split_unknown(Version, raw)) if raw else None

        known = _split_unknown(DeploymentState, row)
        previous = tuple(Version(**_split_unknown(Version, raw)) for raw in known["previous"])
        history = tuple(HistoryEntry(**_split_unknown(HistoryEntry, raw)) for raw in known["history"])
        champion, challenger = version(known["champion"]), version(known["challenger"])
        return DeploymentState(champion, challenger, previous, dict(known["held"]), history, known["unknown"])

    def to_json(self) -> dict[str, Any]:
        row = record_json(self)
        for name in ("champion", "challenger"):
            version = getattr(self, name)
            row[name] = None if version is None else record_json(version)
        return row | {name: [record_json(item) for item in getattr(self, name)] for name in ("previous", "history")}


def _split_unknown(kind: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `kind` in `raw`; all others are collected under `unknown`."""
    names = {known.name for known in fields(kind)} - {"unknown"}
    unknown = tuple((name, json.dumps(value)) for name, value in raw.items() if name not in names)
    return {name: value for name, value in raw.items() if name in names} | {"unknown": unknown}


def record_json(record: Version | HistoryEntry | DeploymentState) -> dict[str, Any]:
    """The record's own fields, then those that a newer release wrote."""
    known = {item.name: getattr(record, item.name) for item in fields(record) if item.name != "unknown"}
    return known | {name: json.loads(text) for name, text in record.unknown}


def version_record(version: Version) -> VersionRecord:
    return cast(VersionRecord, record_json(version))


def state_file(store: TaskStore) -> UPath:
    return store.stage_folder("serve") / "deployment_state.json"


def read(store: TaskStore) -> DeploymentState:
    """The deployment state; an empty one when nothing was ever deployed. StorageError when the file is damaged."""
    path = state_file(store)
    with reading(path, f"delete {path} and deploy again"):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return DeploymentState()
        return DeploymentState.from_json(json.loads(text))


def update(store: TaskStore, transition: Callable[[DeploymentState], DeploymentState]) -> DeploymentState:
    """Replace the state by `transition(state)` and return the new one. One writer at a time on this machine; the file
    is replaced atomically. The lock is not the task's own, so that a rollback does not wait for a run."""
    lock = home() / "locks" / f"{store.task}.deployment_state.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(lock)):
        state = transition(read(store))
        write_atomic(state_file(store), json.dumps(state.to_json(), indent=1, ensure_ascii=False))
    return state
