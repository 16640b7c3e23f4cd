"""JSON values and JSON Lines files, as every stage reads and writes them.

write_jsonl(out / "drops.jsonl", drops)          # 12, the number of lines
next(read_jsonl(out / "drops.jsonl"))            # {"id": "9f1c20e4a7b35d68", "reason": "exact-duplicate", ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from finetune_pipeline.errors import reading

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


def dumps(row: Any) -> str:
    """One line of JSON, with characters outside ASCII as they are and keys in the order of `row`."""
    return json.dumps(row, ensure_ascii=False, sort_keys=False)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of an artifact's file; empty lines are skipped. StorageError when it is missing or damaged."""
    with reading(path, f"delete {path.parent} and run again"), path.open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Write dataclass instances, objects with `to_json` or plain dicts, one per line; returns the number of lines."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            plain = row.to_json() if hasattr(row, "to_json") else row if isinstance(row, dict) else asdict(row)
            out.write(dumps(plain) + "\n")
            count += 1
    return count
