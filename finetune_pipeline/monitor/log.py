"""The endpoint's log, read line by line into counts and arrays: memory stays small with millions of requests.

    traffic = read(paths, adapter="9be0…", kind=lambda answer: slice_of(answer, spec))
    traffic.seconds                         array of float, a number for each answered request

Judged are the lines of one adapter, the one that serves: after a deployment the answers of its predecessor must not
raise an alarm against it. Of the others only the number is kept, by version. A line that is no JSON (the machine went
down while it was written) is counted as unreadable.

What it is not: the log's writer, which says what a line holds (serve/traffic.py).
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

BROKEN = ("invalid", "fallback", "rejected")  # the model's answer broke the format, whatever was done about it
ANSWERED = ("ok", "invalid", "rejected")  # the text is the model's own; a fallback's is the base model's
UNANSWERED = ("error", "abandoned")


def _numbers() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Traffic:
    """What was read. `requests` counts the lines of the adapter that were let in; `refused` the others, by the code of
    the error; `checked` those with a format to keep, of which `broken` did not. Lengths are in characters (where the
    log keeps texts) and in tokens; `queued` is how long each waited for a place; `kinds` counts the answers by label or
    slice; `days` counts requests and broken answers by day; `versions` counts the lines of all adapters."""

    requests: int = 0
    checked: int = 0
    broken: int = 0
    unreadable: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    days: dict[str, list[int]] = field(default_factory=dict)
    seconds: array[float] = field(default_factory=_numbers)
    queued: array[float] = field(default_factory=_numbers)
    prompt_chars: array[float] = field(default_factory=_numbers)
    completion_chars: array[float] = field(default_factory=_numbers)
    prompt_tokens: array[float] = field(default_factory=_numbers)
    completion_tokens: array[float] = field(default_factory=_numbers)
    first: str = ""
    last: str = ""


def window(now: str, days: int) -> list[str]:
    """The dates (UTC, ISO 8601) that a report made at `now` covers: today and the days before, oldest first."""
    today = datetime.fromisoformat(now).date()
    return [(today - timedelta(days=back)).isoformat() for back in reversed(range(days))]


def files(folder: Path, days: Iterable[str]) -> list[Path]:
    """The logs of these days that exist."""
    return [path for day in days if (path := folder / f"{date.fromisoformat(day)}.jsonl").exists()]


def read(paths: Iterable[Path], adapter: str, kind: Callable[[str], str]) -> Traffic:
    """Count every line of the files. `kind` names the label or slice of an answer, "" where there is none."""
    traffic = Traffic()
    for path in paths:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    traffic.unreadable += bool(line.strip())
                    continue
                _add(traffic, row, adapter, kind)
    return traffic


def _add(traffic: Traffic, row: Mapping[str, Any], adapter: str, kind: Callable[[str], str]) -> None:
    traffic.versions[str(row["version"])] += 1
    if row["adapter"] != adapter:
        return
    status, answer = row["status"], row["completion"]
    if status == "refused":
        traffic.refused[str(row.get("code"))] += 1
        return
    broken = status in BROKEN
    traffic.requests += 1
    traffic.statuses[status] += 1
    traffic.first, traffic.last = traffic.first or row["at"], row["at"]
    day = traffic.days.setdefault(row["at"][:10], [0, 0])
    day[0] += 1
    day[1] += broken
    if row["prompt"] is not None:
        traffic.prompt_chars.append(len(row["prompt"]))
    traffic.prompt_tokens.append(row["prompt_tokens"])
    if (queued := row.get("queued_seconds")) is not None:
        traffic.queued.append(queued)
    if status in UNANSWERED:
        return
    traffic.seconds.append(row["seconds"])
    traffic.checked += row["valid"] is not None
    traffic.broken += broken
    if status in ANSWERED:
        traffic.completion_tokens.append(row["completion_tokens"])
        if answer is not None:
            traffic.completion_chars.append(len(answer))
            if name := kind(answer):
                traffic.kinds[name] += 1
