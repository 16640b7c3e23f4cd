"""Which version of a task the endpoint shall serve: the desired state, written by the pipeline, read by every endpoint.

    11_serve/deployment_state.json
    {"champion": {"version": 4, "adapter": "9be0…", "adapter_key": "3fa9…", "base": "77c1…", "registered": "0d2e…",
                  "evaluation": "51aa…", "served_as": "support_tickets", "max_new_tokens": 64, "on_invalid": "flag",
                  "log_text": true, "at": "2026-01-05T10:00:00+00:00"},
     "challenger": null, "previous": [{"version": 3, …}], "held": {"c41d…": "version 5 was rolled back, 2026-…"},
     "history": [{"at": "2026-…", "what": "promote", "before": "e07b…", "after": "0d2e…", "version": 4, "why": ""}]}

The endpoint does what this file and the adapter's own manifest say, never what task.yaml says at the moment: an edited
declaration reaches the traffic through the pipeline, and its parity check, or not at all.

A version that was rolled back is *held*: the pipeline will not bring it back by itself, since whoever rolled it back
had a reason that the evaluation does not know. `unhold` lifts that. `moves_of` counts how often traffic was
taken from a model, or a hold was lifted; as part of the asset's key it makes a deployment stale exactly when what it
says is no longer so (after a rollback, after a hold was lifted, when an older model becomes the current one again).

What it is not: the process that serves (supervisor.py), or MLflow's aliases, which follow this file for people.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

from filelock import FileLock
from upath import UPath

from finetune_pipeline.errors import GateRefused, StorageError, reading
from finetune_pipeline.store import TaskStore, home, write_atomic

Policy = Literal["flag", "retry", "base", "reject"]
Unknown = tuple[tuple[str, str], ...]
"""Fields that a newer release wrote, as names and JSON texts: kept where the file is written again."""


@dataclass(frozen=True, slots=True)
class Version:
    """One registered model and how it is to be served. `adapter`, `base`, `registered` and `evaluation` are content
    hashes; `adapter_key` finds the artifact; `max_new_tokens` is the longest answer, as in the evaluation; `at` is when
    it was put here (UTC, ISO 8601)."""

    version: int
    adapter: str
    adapter_key: str
    base: str
    registered: str
    evaluation: str
    served_as: str
    max_new_tokens: int
    on_invalid: Policy
    log_text: bool
    at: str
    unknown: Unknown = ()


@dataclass(frozen=True, slots=True)
class Move:
    """One line of the history. `before` and `after` are `registered` hashes of the champion around the move."""

    at: str
    what: Literal["promote", "rollback", "settings", "release"]
    before: str | None
    after: str | None
    version: int
    why: str = ""
    unknown: Unknown = ()


@dataclass(frozen=True, slots=True)
class Desired:
    """What shall be served. `previous` holds the champions to fall back on, newest first; `held` maps an adapter's
    content to why it must not be deployed again without a person's word."""

    champion: Version | None = None
    challenger: Version | None = None
    previous: tuple[Version, ...] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Move, ...] = ()
    unknown: Unknown = ()

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Desired:
        def version(raw: Mapping[str, Any] | None) -> Version | None:
            return Version(**_known(Version, raw)) if raw else None

        known = _known(Desired, row)
        previous = tuple(Version(**_known(Version, raw)) for raw in known["previous"])
        history = tuple(Move(**_known(Move, raw)) for raw in known["history"])
        champion, challenger = version(known["champion"]), version(known["challenger"])
        return Desired(champion, challenger, previous, dict(known["held"]), history, known["unknown"])

    def to_json(self) -> dict[str, Any]:
        row = plain(self)
        for name in ("champion", "challenger"):
            found = getattr(self, name)
            row[name] = None if found is None else plain(found)
        return row | {name: [plain(item) for item in getattr(self, name)] for name in ("previous", "history")}


def _known(kind: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `kind` in `raw`; what else there is goes to `unknown`."""
    names = {one.name for one in fields(kind)} - {"unknown"}
    unknown = tuple((name, json.dumps(value)) for name, value in raw.items() if name not in names)
    return {name: value for name, value in raw.items() if name in names} | {"unknown": unknown}


def plain(record: Version | Move | Desired) -> dict[str, Any]:
    """The record's own fields, and behind them those of a newer release."""
    own = {one.name: getattr(record, one.name) for one in fields(record) if one.name != "unknown"}
    return own | {name: json.loads(text) for name, text in record.unknown}


def challenge(state: Desired, candidate: Version) -> Desired:
    """Serve `candidate` beside the champion, under its versioned name alone. GateRefused when it is held."""
    _refuse_held(state, candidate)
    return replace(state, challenger=candidate)


def withdraw(state: Desired, candidate: Version) -> Desired:
    """Serve `candidate` as the challenger no more; nothing happens when another one took its place."""
    return replace(state, challenger=None) if state.challenger == candidate else state


def promote(state: Desired, candidate: Version, expected: Version | None) -> Desired:
    """Give the traffic to `candidate`. The champion so far becomes the one to fall back on, unless it is the same
    model with other settings. GateRefused when the candidate is held, or the champion is not the `expected` one: the
    traffic was moved by somebody else since (a rollback), and that stands."""
    _refuse_held(state, candidate)
    old = state.champion
    if old != expected:
        now, then = (f"version {one.version}" if one else "none" for one in (old, expected))
        raise GateRefused(
            f"version {candidate.version} is not deployed: meanwhile the champion became {now} (it was {then})",
            "see `finetune status` for why, and run again",
        )
    same = old is not None and old.registered == candidate.registered
    before = old.registered if old else None
    move = Move(candidate.at, "settings" if same else "promote", before, candidate.registered, candidate.version)
    previous = state.previous if same or old is None else (old, *state.previous)
    return replace(state, champion=candidate, challenger=None, previous=previous, history=(*state.history, move))


def undo(state: Desired, candidate: Version, before: Desired) -> Desired:
    """Take back that `candidate` was promoted onto `before`, and nothing else: what happened to the state since (a
    rollback, a hold) stands."""
    if state.champion != candidate or not state.history:
        return state
    return replace(
        state, champion=before.champion, previous=before.previous, history=state.history[: len(before.history)]
    )


def back(state: Desired, at: str, why: str) -> Desired:
    """Give the traffic back to the champion before, and hold the present one. GateRefused when there is none before."""
    if state.champion is None or not state.previous:
        raise GateRefused(
            "there is no earlier version to go back to",
            "only a version that was deployed before can be rolled back to; stop the endpoint to serve nothing",
        )
    bad, good = state.champion, replace(state.previous[0], at=at)
    move = Move(at, "rollback", bad.registered, good.registered, good.version, why)
    held = {**state.held, bad.adapter: f"version {bad.version} was rolled back at {at}" + (f": {why}" if why else "")}
    return replace(
        state, champion=good, challenger=None, previous=state.previous[1:], held=held, history=(*state.history, move)
    )


def lift(state: Desired, adapter: str, version: int, registered: str, at: str, why: str) -> Desired:
    """Allow a held adapter to be deployed again; nothing happens when it is not held."""
    if adapter not in state.held:
        return state
    move = Move(at, "release", registered, state.champion.registered if state.champion else None, version, why)
    held = {content: reason for content, reason in state.held.items() if content != adapter}
    return replace(state, held=held, history=(*state.history, move))


def moves_of(state: Desired, registered: str) -> int:
    """How often the traffic was taken from this model, or a hold on it was lifted."""
    taken = ("promote", "rollback", "release")
    return sum(m.before == registered and m.before != m.after for m in state.history if m.what in taken)


def opponent(state: Desired, adapter: str) -> Version | None:
    """What a candidate with this adapter has to hold its own against: the version that serves, or the newest one before
    it where the candidate itself serves already. Thus deploying a candidate does not change its opponent."""
    served = (state.champion, *state.previous)
    return next((version for version in served if version is not None and version.adapter != adapter), None)


def _refuse_held(state: Desired, candidate: Version) -> None:
    reason = state.held.get(candidate.adapter)
    if reason is not None:
        raise GateRefused(
            f"version {candidate.version} is not deployed: {reason}",
            "train a better one, or allow this very adapter again with `finetune unhold`",
        )


# edges ------------------------------------------------------------------------------------------------------


def desired_file(store: TaskStore) -> UPath:
    return store.stage_folder("serve") / "deployment_state.json"


def read(store: TaskStore) -> Desired:
    """The desired state; an empty one when nothing was ever deployed. StorageError when the file is damaged."""
    path = desired_file(store)
    with reading(path, f"delete {path} and deploy again"):
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return Desired()
        return Desired.from_json(json.loads(text))


def change(store: TaskStore, how: Callable[[Desired], Desired]) -> Desired:
    """Replace the state by `how(state)`, one writer at a time on this machine; readers see the old or the new."""
    lock = (
        home() / "locks" / f"{store.task}.desired.lock"
    )  # not the task's own lock: a rollback must not wait for a run
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(lock)):
        state = how(read(store))
        write_atomic(desired_file(store), json.dumps(state.to_json(), indent=1, ensure_ascii=False))
    return state


def rollback(task: str, why: str = "") -> str:
    """Give the traffic of `task` back to the version before, at once and for every endpoint, and let MLflow's alias
    `champion` follow. `why` is kept in the history. Gives a line for people. GateRefused when there is nothing to go
    back to. The traffic moves first: it must not wait for a registry that is down."""
    store = TaskStore(task)
    champion = change(store, lambda old: back(old, _now(), why)).champion
    if champion is None:
        raise GateRefused(f"{task} serves nothing", "deploy a version with `finetune run`")
    line = (
        f"{task}: version {champion.version} serves again, and running endpoints follow within a second; the version "
        f"before is held until you say otherwise (`finetune unhold {task}`)"
    )
    complaint = follow(store)
    return line + (f"; {complaint}" if complaint else "")


def follow(store: TaskStore) -> str:
    """Let MLflow's alias `champion` follow the desired state. Gives what kept it from it, for people, or "": the alias
    is for people to see, and nothing that serves reads it."""
    from finetune_pipeline import tracking

    set_to = None
    while (champion := read(store).champion) is not None and champion.version != set_to:
        registered = store.by_content("registered_model", champion.registered)
        name = str(registered.json("model.json")["name"]) if registered else store.task
        try:
            tracking.set_alias(name, "champion", champion.version)
        except StorageError as error:
            return f"MLflow's alias `champion` could not follow: {error.message}"
        set_to = champion.version  # once more around: it may have moved while MLflow was asked
    return ""


def unhold(task: str, why: str = "") -> str:
    """Allow the currently registered model of `task` to be deployed though it was rolled back; the next run deploys it.
    Gives a line for people. GateRefused when nothing holds it."""
    store = TaskStore(task)
    registered, adapter = store.current("registered_model"), store.current("adapter")
    if registered is None or adapter is None or adapter.content_hash not in read(store).held:
        raise GateRefused(
            "the current model was not rolled back, so nothing holds it", "run `finetune run` to deploy it"
        )
    version = int(registered.json("model.json")["version"])
    change(store, lambda old: lift(old, adapter.content_hash, version, registered.content_hash, _now(), why))
    return f"{task}: version {version} may be deployed again; `finetune run {task}` does it, after the parity check"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
