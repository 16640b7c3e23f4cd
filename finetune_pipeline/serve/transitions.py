"""Transitions of the deployment state: promote, roll back, hold, unhold. Pure functions from state to state.

    add_challenger(state, version)                    served as support_tickets@4 only; traffic stays with the champion
    promote(state, version, expected=champion)        traffic goes to it; the old champion goes to `previous`
    roll_back(state, at, reason)                      the newest of `previous` is champion again; the old one is held
    remove_hold(state, …)                             the held version may be deployed again

A version that was rolled back is *held*: the pipeline does not deploy it again by itself, because the evaluation does
not know the reason of the rollback. `remove_hold` ends that.

`invalidations` counts how often traffic was taken from a model, or a hold on it was removed. It is part of the key of
the asset `deployed_endpoint`, which makes a deployment stale exactly when its result no longer holds: after a rollback,
after a hold was removed, or when an older model becomes the current one again.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_pipeline.errors import GateRefused
from finetune_pipeline.serve.deployment_state import DeploymentState, HistoryEntry, Version


def add_challenger(state: DeploymentState, candidate: Version) -> DeploymentState:
    """Serve `candidate` beside the champion, under its versioned name only. GateRefused when it is held."""
    _check_not_held(state, candidate)
    return replace(state, challenger=candidate)


def remove_challenger(state: DeploymentState, candidate: Version) -> DeploymentState:
    """Serve `candidate` as challenger no more; the state is unchanged when another version is the challenger."""
    return replace(state, challenger=None) if state.challenger == candidate else state


def promote(state: DeploymentState, candidate: Version, expected: Version | None) -> DeploymentState:
    """Make `candidate` the champion. The old champion is kept for rollback, unless it is the same model with other
    settings. GateRefused when the candidate is held, or when the champion is not `expected`: the traffic was moved
    during the deployment (by a rollback), and that move is kept."""
    _check_not_held(state, candidate)
    old = state.champion
    if old != expected:
        now, then = (f"version {version.version}" if version else "none" for version in (old, expected))
        raise GateRefused(
            f"version {candidate.version} is not deployed: during the deployment the champion became {now} "
            f"(it was {then})",
            "run `finetune status TASK` for the reason, then run again",
        )
    same = old is not None and old.registered == candidate.registered
    before = old.registered if old else None
    entry = HistoryEntry(
        candidate.at, "settings" if same else "promote", before, candidate.registered, candidate.version
    )
    previous = state.previous if same or old is None else (old, *state.previous)
    return replace(state, champion=candidate, challenger=None, previous=previous, history=(*state.history, entry))


def revert_promotion(state: DeploymentState, candidate: Version, before: DeploymentState) -> DeploymentState:
    """Undo the promotion of `candidate`, which was made on the state `before`. Later changes (a rollback, a hold) are
    kept; the state is unchanged when `candidate` is no longer the champion."""
    if state.champion != candidate or not state.history:
        return state
    return replace(
        state, champion=before.champion, previous=before.previous, history=state.history[: len(before.history)]
    )


def roll_back(state: DeploymentState, at: str, reason: str) -> DeploymentState:
    """Make the previous champion the champion again, and hold the present one. GateRefused when there is none."""
    if state.champion is None or not state.previous:
        raise GateRefused(
            "there is no earlier version to roll back to",
            "deploy another version with `finetune run`, or stop the endpoint to serve nothing",
        )
    old, new = state.champion, replace(state.previous[0], at=at)
    entry = HistoryEntry(at, "rollback", old.registered, new.registered, new.version, reason)
    note = f"version {old.version} was rolled back at {at}" + (f": {reason}" if reason else "")
    return replace(
        state,
        champion=new,
        challenger=None,
        previous=state.previous[1:],
        held={**state.held, old.adapter: note},
        history=(*state.history, entry),
    )


def remove_hold(
    state: DeploymentState, adapter: str, version: int, registered: str, at: str, reason: str
) -> DeploymentState:
    """Allow a held adapter (a content hash) to be deployed again; the state is unchanged when it is not held."""
    if adapter not in state.held:
        return state
    after = state.champion.registered if state.champion else None
    entry = HistoryEntry(at, "unhold", registered, after, version, reason)
    held = {hash_: note for hash_, note in state.held.items() if hash_ != adapter}
    return replace(state, held=held, history=(*state.history, entry))


def invalidations(state: DeploymentState, registered: str) -> int:
    """How often traffic was taken from this registered model, or a hold on it was removed."""
    counted = ("promote", "rollback", "unhold")
    return sum(
        entry.before == registered and entry.before != entry.after for entry in state.history if entry.action in counted
    )


def live_version(state: DeploymentState, adapter: str) -> Version | None:
    """The version that a candidate with this adapter is compared with: the champion, or the newest previous one where
    the candidate is the champion. So the result does not change when the candidate is deployed."""
    versions = (state.champion, *state.previous)
    return next((version for version in versions if version is not None and version.adapter != adapter), None)


def _check_not_held(state: DeploymentState, candidate: Version) -> None:
    note = state.held.get(candidate.adapter)
    if note is not None:
        raise GateRefused(
            f"version {candidate.version} is not deployed: {note}",
            "train a better one, or allow this adapter again with `finetune unhold TASK`",
        )
