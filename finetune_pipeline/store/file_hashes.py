"""SHA-256 of files, computed once for each change of a file: weights and raw data may take minutes to read.

    file_hash(Path("raw/tickets.csv"))      # "9f86d081884c7d65…"; the second call asks the file system only

What is remembered lies in `<home>/hashes/`, a small file for each path, replaced as a whole: several processes may ask
at the same time, and a damaged one counts as none. A hash holds for size, modification and change time (which no copy
or `touch` sets back) and inode. A file that changed within the last moments is not remembered: it may change again
within one tick of the file system's clock, which would not show.
"""

from __future__ import annotations

import json
import os
import time
from hashlib import sha256
from pathlib import Path

from finetune_pipeline.store.files import sha256_file, write_atomic
from finetune_pipeline.store.paths import home

SETTLED_SECONDS = 2.0  # the coarsest clock of a usual file system


def file_hash(path: Path) -> str:
    """SHA-256 of the file's content, in hexadecimal digits. OSError when it cannot be read."""
    where = str(path.absolute())
    before = _state(path)
    memory = home() / "hashes" / f"{sha256(os.fsencode(where)).hexdigest()[:32]}.json"
    known = _remembered(memory, where, before)
    if known is not None:
        return known
    digest = sha256_file(path)
    after = _state(path)
    if after == before and time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > SETTLED_SECONDS * 1e9:
        write_atomic(memory, json.dumps({"path": where, "state": after, "sha256": digest}))
    return digest


def _state(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
        "device": stat.st_dev,
    }


def _remembered(memory: Path, where: str, state: dict[str, int]) -> str | None:
    try:
        known = json.loads(memory.read_text("utf-8"))
        return str(known["sha256"]) if (known["path"], known["state"]) == (where, state) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
