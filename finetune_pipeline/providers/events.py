"""The events of a job: log lines for people, and metrics as the lines of history.jsonl.

{"step": 12, "loss": 0.31, "validation_loss": 0.42, "token_accuracy": 0.91, "full_validation_loss": 0.40}

Losses are the provider's means per trained token in nats. `validation_loss` is of one batch of the validation rows,
`full_validation_loss` of all of them, usually once per epoch. Which of them are there depends on the provider.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from finetune_pipeline.errors import reading
from finetune_pipeline.records import dumps
from finetune_pipeline.store import write_atomic

if TYPE_CHECKING:
    from openai import OpenAI

NAMES = {
    "train_loss": "loss",
    "valid_loss": "validation_loss",
    "full_valid_loss": "full_validation_loss",
    "train_mean_token_accuracy": "token_accuracy",
    "train_accuracy": "token_accuracy",
    "valid_mean_token_accuracy": "validation_token_accuracy",
    "full_valid_mean_token_accuracy": "full_validation_token_accuracy",
}
HistoryLine = dict[str, float]


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event. `data` are the figures of a metrics event; `at`: Unix time."""

    id: str
    at: int
    level: str
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def metrics(self) -> HistoryLine:
        """The figures under our names, without the step; empty for an event without any."""
        return figures(self.data)

    @property
    def step(self) -> int | None:
        step = self.data.get("step")
        return int(step) if isinstance(step, int | float) else None


class EventLog:
    """The events of one job so far, kept in a file, so that a resumed training reports none twice."""

    @staticmethod
    def of_job(folder: Path, job: str) -> EventLog:
        """The log of the job with this id in the folder of a training, which may have had another job before."""
        return EventLog(folder / f"events-{quote(job, safe='')}.jsonl")

    def __init__(self, path: Path) -> None:
        """StorageError when the file is damaged."""
        self._path = path
        with reading(path, f"delete {path} and run again: the events are read from the provider again"):
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            self.events = [JobEvent(**json.loads(line)) for line in lines]

    def fetch(self, client: OpenAI, job: str) -> list[JobEvent]:
        """The events that are new, oldest first. The API lists the newest first."""
        known = {event.id for event in self.events}
        listed = takewhile(lambda event: event.id not in known, client.fine_tuning.jobs.list_events(job, limit=100))
        new = [
            JobEvent(event.id, event.created_at, event.level, event.message, _plain(event.data)) for event in listed
        ][::-1]
        if new:
            self.events += new
            write_atomic(self._path, "".join(dumps(asdict(event)) + "\n" for event in self.events))
        return new


def history(events: Iterable[JobEvent], checkpoints: Iterable[tuple[int, Mapping[str, Any]]]) -> list[HistoryLine]:
    """One line per step, from the metrics of events and of checkpoints (step, figures)."""
    lines: dict[int, HistoryLine] = {}
    for event in events:
        if event.step is not None and event.metrics:
            lines.setdefault(event.step, {"step": event.step}).update(event.metrics)
    for step, data in checkpoints:
        lines.setdefault(step, {"step": step}).update(figures(data))
    return [lines[step] for step in sorted(lines)]


def figures(data: Mapping[str, Any]) -> HistoryLine:
    """The provider's metrics that have a name here, as numbers."""
    named = {NAMES[name]: value for name, value in data.items() if name in NAMES}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float)}


def validation_change(lines: Iterable[HistoryLine]) -> tuple[float, float, str] | None:
    """The validation loss at the beginning and at the end, and what was compared; None where it is not reported twice.

    The loss on all validation rows where it was reported twice; else the means of the first and the last fifth of the
    batches, since a single batch varies more than the loss falls.
    """
    steps = list(lines)
    whole = [line["full_validation_loss"] for line in steps if "full_validation_loss" in line]
    if len(whole) > 1:
        return whole[0], whole[-1], "on all validation rows, first and last time reported"
    batches = [line["validation_loss"] for line in steps if "validation_loss" in line]
    if len(batches) < 2:
        return None
    part = max(1, len(batches) // 5)
    return sum(batches[:part]) / part, sum(batches[-part:]) / part, f"means of the first and last {part} batches"


def _plain(data: object) -> dict[str, Any]:
    return dict(data) if isinstance(data, Mapping) else {}
