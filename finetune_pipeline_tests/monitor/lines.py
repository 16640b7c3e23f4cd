"""Lines of the endpoint's log for the monitor's tests, with the keys that the endpoint writes.

line(status="invalid", valid=False)          one line of version 4, adapter "a1"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune_pipeline.records import dumps
from finetune_pipeline.serve.traffic import Line

PLAIN = Line(
    at="2026-01-05T08:00:00.000+00:00",
    request="chatcmpl-1",
    task="parcels",
    model="parcels",
    version=4,
    adapter="a1",
    status="ok",
    valid=True,
    seconds=0.5,
    first_token_seconds=0.1,
    prompt_tokens=40,
    completion_tokens=5,
    key="shop",
    stream=False,
    prompt="where is my parcel?",
    completion="delivery",
)


def line(**changed: Any) -> dict[str, Any]:
    return {**asdict(PLAIN), **changed}


def write(folder: Path, rows: Iterable[dict[str, Any]]) -> list[Path]:
    """Append the rows to their days' files; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = set()
    for row in rows:
        path = folder / f"{row['at'][:10]}.jsonl"
        with path.open("a", encoding="utf-8") as file:
            file.write(dumps(row) + "\n")
        paths.add(path)
    return sorted(paths)
