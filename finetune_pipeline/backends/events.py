"""The events that a job appends to `events.jsonl`, one JSON object per line, and its parent reads.

{"event": "log", "text": "reading weights"}
{"event": "progress", "what": "training", "done": 3, "total": 94, "figures": {"loss": 0.31}}
{"event": "result", "result": {"steps": 94}}
{"event": "error", "type": "TrainingFailed", "message": "the loss diverges", "hint": "lower the learning rate"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class LogEvent:
    event: ClassVar = "log"
    text: str


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """`done` of `total` units of the work `what`; `figures` are numbers to show with it."""

    event: ClassVar = "progress"
    what: str
    done: int
    total: int
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ResultEvent:
    """The job has finished. `result` is what its function returned, as JSON (job_data.py)."""

    event: ClassVar = "result"
    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """The job has failed with an error of errors.py: its class name, message and hint."""

    event: ClassVar = "error"
    type: str
    message: str
    hint: str


Event = LogEvent | ProgressEvent | ResultEvent | ErrorEvent
_CLASSES: dict[str, type[Event]] = {
    "log": LogEvent,
    "progress": ProgressEvent,
    "result": ResultEvent,
    "error": ErrorEvent,
}


def to_line(event: Event) -> str:
    return json.dumps({"event": event.event, **asdict(event)}) + "\n"


def from_line(line: str) -> Event | None:
    """The event of a line; None for a line that is incomplete, as a full disk leaves it."""
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    return _CLASSES[fields.pop("event")](**fields)
