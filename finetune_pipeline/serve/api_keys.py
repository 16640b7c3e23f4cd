"""The endpoint's API keys: read from the environment, or generated at the first start.

    FINETUNE_API_KEYS="shop:3v1l…,desk:9k2m…"       name:key, separated by commas; the traffic log has the name
    <home>/endpoint_key                             otherwise: one key named `local`, generated once, mode 0600
    <home>/pipeline_key                             always: the pipeline's own, named `pipeline`; only its requests may
                                                    be marked as checks (parity), which are not counted as traffic

Keys are hashed as soon as they are read, and compared in constant time. The key file is for this machine: to listen on
anything but loopback, FINETUNE_API_KEYS has to be set. There are no limits per key, and keys do not expire: use a
gateway in front of the endpoint for that.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.config.addresses import is_loopback
from finetune_pipeline.errors import ServingError, reading
from finetune_pipeline.store import storage_error

KEYS_VARIABLE = "FINETUNE_API_KEYS"
PIPELINE = "pipeline"
MIN_LENGTH = 8  # shorter keys can be guessed


@dataclass(frozen=True)
class ApiKeys:
    """SHA-256 digests of the keys, by name."""

    digests: Mapping[str, bytes]

    def owner(self, authorization: str | None) -> str | None:
        """The name of the key in this Authorization header (`Bearer <key>`), None for an unknown one; constant time."""
        scheme, _, key = (authorization or "").partition(" ")
        sent = _digest(key.strip())
        owner = None
        for name, digest in self.digests.items():
            if hmac.compare_digest(sent, digest):
                owner = name
        return owner if scheme.lower() == "bearer" else None


def load_keys(environment: Mapping[str, str], home: Path, host: str) -> ApiKeys:
    """The keys that the endpoint accepts. ServingError when one is malformed, or when `host` is not loopback and
    FINETUNE_API_KEYS is not set."""
    declared = environment.get(KEYS_VARIABLE, "").strip()
    if not declared and not is_loopback(host):
        raise ServingError(
            f"the endpoint would listen on {host}, where other machines can connect, and {KEYS_VARIABLE} is not set",
            f'set {KEYS_VARIABLE}="name:key,name:key", or listen on 127.0.0.1',
        )
    pairs = parse(declared) if declared else {"local": read_or_create_key(key_file(home))}
    pairs[PIPELINE] = pipeline_key(home)
    return ApiKeys({name: _digest(key) for name, key in pairs.items()})


def pipeline_key(home: Path) -> str:
    """The pipeline's key, which every endpoint with this home accepts; generated at the first call."""
    return read_or_create_key(home / "pipeline_key")


def parse(text: str) -> dict[str, str]:
    """`name:key,name:key` as a mapping from name to key. ServingError names the wrong entry, never the key itself."""
    pairs: dict[str, str] = {}
    for number, entry in enumerate(text.split(","), start=1):
        name, colon, key = (part.strip() for part in entry.partition(":"))
        hint = f'write {KEYS_VARIABLE}="name:key,name:key" with keys of {MIN_LENGTH} characters or more'
        if not colon or not name:
            raise ServingError(f"entry {number} of {KEYS_VARIABLE} is not name:key", hint)
        if len(key) < MIN_LENGTH:
            raise ServingError(
                f"the key of {name!r} in {KEYS_VARIABLE} has {len(key)} characters, {MIN_LENGTH} are required", hint
            )
        if name == PIPELINE:
            raise ServingError(
                f"{KEYS_VARIABLE} names {name!r}, which is reserved for the pipeline", "give the key another name"
            )
        if name in pairs:
            raise ServingError(f"{KEYS_VARIABLE} names {name!r} twice", "give every key its own name")
        pairs[name] = key
    return pairs


def key_file(home: Path) -> Path:
    return home / "endpoint_key"


def read_or_create_key(path: Path) -> str:
    """The key in this file, which is created with mode 0600 if it is missing. StorageError when it cannot be read or
    written, ServingError when it holds no key."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_new(path, "ft-" + secrets.token_urlsafe(32))
    except OSError as error:
        raise storage_error(error, str(path)) from error
    with reading(path, f"delete {path}; the next start creates a new one"):
        key = path.read_text("utf-8").strip()
    if len(key) < MIN_LENGTH:
        raise ServingError(
            f"{path} holds no key of at least {MIN_LENGTH} characters",
            f"delete {path}; the next start creates a new one",
        )
    return key


def _write_new(path: Path, key: str) -> None:
    """Write the file atomically, and never over a key that another process has created since."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(key + "\n")
        os.link(scratch, path)
    except FileExistsError:
        pass
    finally:
        scratch.unlink()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
