"""Atomic writes, and errors of the operating system as StorageError.

write_atomic(folder / "current", "3fa9c1d2e4b5a687")
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeAlias

from upath import UPath

from finetune_pipeline.errors import StorageError

LOCAL = ("", "file", "local")  # fsspec's names of this machine's file system
Location: TypeAlias = Path | UPath


def sha256_file(path: Path) -> str:
    """SHA-256 as 64 hexadecimal digits. OSError when the file cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Location, text: str) -> None:
    """Replace a small file: readers see the old text or the new, never a part. StorageError when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, UPath) and path.protocol not in LOCAL:
        path.write_text(text, encoding="utf-8")  # an object store replaces an object atomically
        return
    handle, scratch = tempfile.mkstemp(dir=str(path.parent), prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).chmod(0o644)
        Path(scratch).replace(str(path))
    except OSError as error:
        Path(scratch).unlink(missing_ok=True)
        raise storage_error(error, str(path)) from error


def is_full(error: OSError) -> bool:
    """Whether the disk is full or the quota is used up."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def storage_error(error: OSError, where: str) -> StorageError:
    """The StorageError for an OSError of a write to `where`."""
    if is_full(error):
        there = next((str(p) for p in (Path(where), *Path(where).parents) if p.exists()), ".")
        free = shutil.disk_usage(there).free
        return StorageError(
            f"no room left to write {where} ({free / 1e9:.1f} GB free)",
            "free disk space and run the same command again; finished artifacts are kept",
        )
    return StorageError(
        f"cannot write {where}: {error.strerror or error}", "check the permissions of the folder, and the disk"
    )
