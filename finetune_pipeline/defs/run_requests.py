"""When a sensor offers a run: for each change once, again after a failure, and never for ever. Pure; no I/O, no clock.

    offer = decide(Memory.parse(context.cursor), wanted, last, now)
    offer.memory, offer.run, offer.reason        the next cursor, whether to start a run, and why (not)

Dagster never starts two runs of one sensor with the same run key. So the key names the turn as well as the content:
when a file changes from A to B and back to A, these are three turns. It names the attempt too, so that a run that
failed can be offered again, at most ATTEMPTS times and later each time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta

ATTEMPTS = 3
UNCHANGED = "nothing changed since the last run"
WAIT = timedelta(minutes=5)  # after the first failure; four times as long after each further one


@dataclass(frozen=True, slots=True)
class Memory:
    """A sensor's cursor: what its last run was offered for (`content`), when that change was seen (`turn`, ISO 8601),
    how often a run was offered for it, and the alarm that people were told of (`told`)."""

    content: str = ""
    turn: str = ""
    attempt: int = 0
    told: str = ""

    @staticmethod
    def parse(cursor: str | None) -> Memory:
        """A cursor of another version, or one that a person typed, counts as none."""
        try:
            return Memory(**json.loads(cursor or "{}"))
        except (ValueError, TypeError):
            return Memory()

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @property
    def run_key(self) -> str:
        return f"{self.content}@{self.turn}#{self.attempt}" if self.attempt else ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What there is to do now. `content` is the hash of what the run would start from, `changed` whether that was used
    already; `unmade` are the job's assets that are not made from it, `refused` is the verdict of a gate that failed."""

    content: str
    changed: bool
    unmade: Sequence[str] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The run that was started for the memory's run key. status: active, failed, canceled or done."""

    id: str
    status: str
    ended: datetime | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    memory: Memory
    run: bool
    reason: str


def decide(memory: Memory, wanted: Wanted, last: LastRun | None, now: datetime) -> Offer:
    """Whether to start a run now."""
    if last is not None and last.status == "active":
        return Offer(memory, False, f"run {last.id[:8]} is under way")
    if wanted.content != memory.content:
        if wanted.changed:
            turn = now.isoformat()  # to the microsecond: two changes may follow within a second
            return Offer(replace(memory, content=wanted.content, turn=turn, attempt=1), True, "changed")
        # what was offered is gone; should it come back, that is a change
        return Offer(replace(memory, content="", attempt=0), False, UNCHANGED)
    if last is None and wanted.changed:
        return Offer(memory, True, "changed")  # the daemon stopped before it started the run
    if last is None or not (wanted.changed or (last.status == "failed" and wanted.unmade)):
        return Offer(memory, False, UNCHANGED)
    return _again(memory, wanted, last, now)


def _again(memory: Memory, wanted: Wanted, last: LastRun, now: datetime) -> Offer:
    """The last run for this very content left something to do."""
    ended = f"run {last.id[:8]} {'was canceled' if last.status == 'canceled' else last.status}"
    if wanted.refused:
        return Offer(memory, False, f"{ended}: {wanted.refused}; another run of the same data would end alike")
    if last.status == "canceled":
        return Offer(memory, False, f"{ended}; start the job by hand to go on")
    if memory.attempt >= ATTEMPTS:
        return Offer(
            memory, False, f"{ended}, the last of {ATTEMPTS} attempts; find out why, then start the job by hand"
        )
    due = (last.ended or now) + WAIT * 4 ** (memory.attempt - 1)
    if now < due:
        return Offer(memory, False, f"{ended}; it is started again at {due:%Y-%m-%d %H:%M} UTC")
    return Offer(replace(memory, attempt=memory.attempt + 1), True, f"{ended}; attempt {memory.attempt + 1}")
