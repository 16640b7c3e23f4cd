"""Files with mode 0600: the users of the desk, their open sessions, and the secret that signs its cookies.

    home()/desk_users.json        0600
    home()/desk_sessions.json     0600
    home()/desk_secret            0600, 64 hexadecimal digits, created at the first start

`store.write_atomic` writes files with mode 0644.
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
    """Replace the file atomically, with mode 0600. StorageError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(
            dir=path.parent, prefix=".", suffix=".tmp"
        )  # mkstemp creates it with mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    except OSError as error:
        raise storage_error(error, str(path)) from error


def one_writer(path: Path) -> FileLock:
    """A lock to hold while a private file is read, changed and written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, str(path.parent)) from error
    return FileLock(f"{path}.lock", timeout=10)


def signing_secret() -> str:
    """The key that signs the session cookies; created if missing. Deleting the file signs all users out."""
    path = home() / "desk_secret"
    with one_writer(path):
        if not path.exists():
            write_private(path, secrets.token_hex(32))
        with reading(path, f"delete {path}; all users have to sign in again"):
            return path.read_text("utf-8").strip()
