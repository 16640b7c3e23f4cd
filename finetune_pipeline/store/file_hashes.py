"""SHA-256 of files, cached until a file changes: weights and raw data may take minutes to read.

    file_hash(Path("raw/tickets.csv"))      # "9f86d081884c7d65…"; the second call reads metadata only

The cache is `<home>/hashes/`, one small file per path, replaced atomically: several processes may read and write it at
the same time, and a damaged entry is ignored. An entry is valid for one combination of size, modification time, change
time (which no copy or `touch` can set back), inode and device. A file that changed within the last SETTLED_SECONDS is
not cached: it could change again within one tick of the file system's clock, which would not be visible.
"""

from __future__ import annotations

import json
import os
import time
from hashlib import sha256
from pathlib import Path

from finetune_pipeline.store.files import sha256_file, write_atomic
from finetune_pipeline.store.paths import home

SETTLED_SECONDS = 2.0  # the coarsest timestamp resolution of a common file system (FAT)


def file_hash(path: Path) -> str:
    """SHA-256 of the file's content, as 64 hexadecimal digits. OSError when it cannot be read."""
    where = str(path.absolute())
    before = _metadata(path)
    cache = home() / "hashes" / f"{sha256(os.fsencode(where)).hexdigest()[:32]}.json"
    cached = _cached(cache, where, before)
    if cached is not None:
        return cached
    digest = sha256_file(path)
    after = _metadata(path)
    if after == before and time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > SETTLED_SECONDS * 1e9:
        write_atomic(cache, json.dumps({"path": where, "state": after, "sha256": digest}))
    return digest


def _metadata(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "ctime_ns": stat.st_ctime_ns,
        "inode": stat.st_ino,
        "device": stat.st_dev,
    }


def _cached(cache: Path, where: str, metadata: dict[str, int]) -> str | None:
    try:
        entry = json.loads(cache.read_text("utf-8"))
        return str(entry["sha256"]) if (entry["path"], entry["state"]) == (where, metadata) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
