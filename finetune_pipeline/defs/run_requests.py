"""When a sensor requests a run: once for each change, again after a failure, at most ATTEMPTS times. Pure.

    tick = decide(Cursor.parse(context.cursor), state, last_run, now)
    tick.cursor, tick.run, tick.reason           the next cursor, whether to request a run, the skip reason

Dagster never starts two runs of one sensor with the same run key. So the key holds the time of the change beside the
content: when a file changes from A to B and back to A, these are three changes. It holds the attempt too, so that a
run that failed can be requested again, later each time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

RunStatus: TypeAlias = Literal["active", "failed", "canceled", "done"]
ATTEMPTS = 3
UNCHANGED = "nothing changed since the last run"
WAIT = timedelta(minutes=5)  # after the first failure; four times as long after each further one


@dataclass(frozen=True, slots=True)
class Cursor:
    """A sensor's cursor. `content_hash`: what the last run was requested for; `changed_at`: when that change was seen
    (ISO 8601); `attempt`: how many runs were requested for it; `reported`: the alarm that was written to the asset's
    events."""

    content_hash: str = ""
    changed_at: str = ""
    attempt: int = 0
    reported: str = ""

    @staticmethod
    def parse(cursor: str | None) -> Cursor:
        """A cursor of another version, or one that a person typed, counts as none."""
        try:
            return Cursor(**json.loads(cursor or "{}"))
        except (ValueError, TypeError):
            return Cursor()

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @property
    def run_key(self) -> str:
        return f"{self.content_hash}@{self.changed_at}#{self.attempt}" if self.attempt else ""


@dataclass(frozen=True, slots=True)
class InputState:
    """What the sensor's job would start from now. `content_hash`: its hash; `changed`: no artifact was made from it
    yet; `stale`: the job's assets that are not made from it; `gate_summary`: the verdict of a blocking gate that
    failed."""

    content_hash: str
    changed: bool
    stale: Sequence[str] = ()
    gate_summary: str = ""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The run that was started for the cursor's run key."""

    id: str
    status: RunStatus
    ended: datetime | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """What a tick of the sensor ends with: a run request where `run` is set, else `reason` as the skip reason."""

    cursor: Cursor
    run: bool
    reason: str


def decide(cursor: Cursor, state: InputState, last: LastRun | None, now: datetime) -> Tick:
    """Whether to request a run now."""
    if last is not None and last.status == "active":
        return Tick(cursor, False, f"run {last.id[:8]} is in progress")
    if state.content_hash != cursor.content_hash:
        if state.changed:
            changed_at = now.isoformat()  # to the microsecond: two changes may follow within a second
            new = replace(cursor, content_hash=state.content_hash, changed_at=changed_at, attempt=1)
            return Tick(new, True, "changed")
        # the content of the last request is gone; should it come back, that is a change
        return Tick(replace(cursor, content_hash="", attempt=0), False, UNCHANGED)
    if last is None and state.changed:
        return Tick(cursor, True, "changed")  # the daemon stopped before it started the run
    if last is None or not (state.changed or (last.status == "failed" and state.stale)):
        return Tick(cursor, False, UNCHANGED)
    return _retry(cursor, state, last, now)


def _retry(cursor: Cursor, state: InputState, last: LastRun, now: datetime) -> Tick:
    """The last run for this very content left stale assets."""
    ended = f"run {last.id[:8]} {'was canceled' if last.status == 'canceled' else last.status}"
    if state.gate_summary:
        reason = f"{ended}: {state.gate_summary}; another run on the same data would end the same way"
        return Tick(cursor, False, reason)
    if last.status == "canceled":
        return Tick(cursor, False, f"{ended}; start the job by hand to continue")
    if cursor.attempt >= ATTEMPTS:
        reason = f"{ended}, the last of {ATTEMPTS} attempts; read its error, fix the cause, then start the job by hand"
        return Tick(cursor, False, reason)
    due = (last.ended or now) + WAIT * 4 ** (cursor.attempt - 1)
    if now < due:
        return Tick(cursor, False, f"{ended}; the next attempt starts at {due:%Y-%m-%d %H:%M} UTC")
    return Tick(replace(cursor, attempt=cursor.attempt + 1), True, f"{ended}; attempt {cursor.attempt + 1}")
