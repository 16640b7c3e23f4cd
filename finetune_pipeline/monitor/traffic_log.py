"""Reads the endpoint's log line by line into counts and arrays: millions of requests need little memory.

    traffic = read(paths, adapter="9be0…", kind=task.answer.slice_of)
    traffic.seconds                         array of float, one for each answered request

Only the lines of the serving adapter are counted in full: the answers of its predecessor must not raise an alarm about
it. Of the other versions only the number of lines is kept. A line that is no JSON (the machine stopped while it was
written) is counted as unreadable. What a line contains is defined in serve/traffic.py.
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

BROKEN = ("invalid", "fallback", "rejected")  # the model's answer broke the format, whatever was served instead
MODEL_ANSWERED = ("ok", "invalid", "rejected")  # the text is the model's; that of a fallback is the base model's
UNANSWERED = ("error", "abandoned")


def _numbers() -> array[float]:
    return array("d")


@dataclass(slots=True)
class Traffic:
    """What was read. `requests` counts the adapter's accepted requests; `refused` the others, by the code of the error;
    `checked` those with a declared format, of which `broken` broke it. Lengths are in characters (where the log keeps
    texts) and in tokens; `seconds` of each answer; `queued` the seconds that each request waited for a slot; `kinds`
    counts the answers by label or slice; `days` requests and broken answers by day; `versions` the lines of all
    adapters."""

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
    """Count every line of the files. `kind` maps an answer to its label or slice, "" for none."""
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
    if row["status"] == "refused":
        traffic.refused[str(row.get("code"))] += 1
        return
    _add_request(traffic, row)
    if row["status"] not in UNANSWERED:
        _add_answer(traffic, row, kind)


def _add_request(traffic: Traffic, row: Mapping[str, Any]) -> None:
    traffic.requests += 1
    traffic.statuses[row["status"]] += 1
    traffic.first, traffic.last = traffic.first or row["at"], row["at"]
    day = traffic.days.setdefault(row["at"][:10], [0, 0])
    day[0] += 1
    day[1] += row["status"] in BROKEN
    if row["prompt"] is not None:
        traffic.prompt_chars.append(len(row["prompt"]))
    traffic.prompt_tokens.append(row["prompt_tokens"])
    if (queued := row.get("queued_seconds")) is not None:
        traffic.queued.append(queued)


def _add_answer(traffic: Traffic, row: Mapping[str, Any], kind: Callable[[str], str]) -> None:
    traffic.seconds.append(row["seconds"])
    traffic.checked += row["valid"] is not None
    traffic.broken += row["status"] in BROKEN
    if row["status"] not in MODEL_ANSWERED:
        return
    traffic.completion_tokens.append(row["completion_tokens"])
    answer = row["completion"]
    if answer is not None:
        traffic.completion_chars.append(len(answer))
        if name := kind(answer):
            traffic.kinds[name] += 1
