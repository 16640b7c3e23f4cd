"""Files as this project writes them: whole or not at all, and errors of the operating system in plain words."""

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
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Location, text: str) -> None:
    """Replace a small file as a whole: readers see the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(path, UPath) and path.protocol not in LOCAL:
        path.write_text(text, encoding="utf-8")  # object stores put a whole object or nothing
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
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def storage_error(error: OSError, where: str) -> StorageError:
    """Say what an operating system's error means to the person who has to fix it."""
    if is_full(error):
        there = next((str(p) for p in (Path(where), *Path(where).parents) if p.exists()), ".")
        free = shutil.disk_usage(there).free
        return StorageError(
            f"no room left to write {where} ({free / 1e9:.1f} GB free)",
            "free some space and run the same command again; everything finished so far is kept",
        )
    return StorageError(f"cannot write {where}: {error.strerror or error}", "check the folder's rights and the disk")
