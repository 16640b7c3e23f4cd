"""Files that only this machine's user may read: the desk's users, and the secret that signs its cookies.

    home()/desk_users.json     0600
    home()/desk_secret         0600, 64 hexadecimal digits, made at the first start

What it is not: `store.write_atomic`, whose files anyone on the machine may read.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from filelock import FileLock

from finetune_pipeline.errors import reading
from finetune_pipeline.store import home, storage_error


def write_private(path: Path, text: str) -> None:
    """Replace the file as a whole, readable by its owner alone. StorageError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")  # mkstemp makes it 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    except OSError as error:
        raise storage_error(error, str(path)) from error


def one_writer(path: Path) -> FileLock:
    """Held while a private file is read, changed and written back."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, str(path.parent)) from error
    return FileLock(f"{path}.lock", timeout=10)


def signing_secret() -> str:
    """The key of the session cookies. Deleting the file signs everybody out."""
    path = home() / "desk_secret"
    with one_writer(path):
        if not path.exists():
            write_private(path, secrets.token_hex(32))
        with reading(path, f"delete {path}; everybody has to sign in again"):
            return path.read_text("utf-8").strip()
