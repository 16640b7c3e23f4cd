"""Who may ask the endpoint: API keys, from the environment or made at the first start.

    FINETUNE_API_KEYS="shop:3v1l…,desk:9k2m…"       name:key, separated by commas; the name stands in the traffic log
    <home>/endpoint_key                             else: one key named `local`, made once, readable by its owner alone
    <home>/pipeline_key                             the pipeline's own, named `pipeline`, beside either: only who has it
                                                    may ask without being counted as traffic (parity)

Keys are hashed as soon as they are read, and compared in constant time. The key of the file is for this machine: to
listen on anything but loopback, keys have to be given on purpose.

What it is not: limits per key, or keys that end; a gateway in front does that.
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

VARIABLE = "FINETUNE_API_KEYS"
PIPELINE = "pipeline"
MIN_LENGTH = 8  # what is shorter is a password somebody made up, and can be guessed


@dataclass(frozen=True)
class Keys:
    """SHA-256 digests of the keys, by the name of who holds each."""

    digests: Mapping[str, bytes]

    def owner(self, authorization: str | None) -> str | None:
        """Who sent this Authorization header (`Bearer <key>`), or None. Takes as long whoever it is."""
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip())
        found = None
        for name, digest in self.digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found if scheme.lower() == "bearer" else None


def load_keys(environment: Mapping[str, str], home: Path, host: str) -> Keys:
    """The keys this endpoint accepts. ServingError when one is malformed, or when `host` is open to others and no
    keys were given."""
    declared = environment.get(VARIABLE, "").strip()
    if not declared and not is_loopback(host):
        raise ServingError(
            f"the endpoint shall listen on {host}, where others can reach it, with no keys of its own",
            f'set {VARIABLE}="name:key,name:key", or listen on 127.0.0.1',
        )
    pairs = parse(declared) if declared else {"local": file_key(key_file(home))}
    pairs[PIPELINE] = client_key(home)
    return Keys({name: _digest(key) for name, key in pairs.items()})


def client_key(home: Path) -> str:
    """The pipeline's key, which every endpoint with this home accepts; made at the first call."""
    return file_key(home / "pipeline_key")


def parse(text: str) -> dict[str, str]:
    """`name:key,name:key` as a mapping. ServingError names the entry that is wrong, never the key itself."""
    pairs: dict[str, str] = {}
    for number, entry in enumerate(text.split(","), start=1):
        name, colon, key = (part.strip() for part in entry.partition(":"))
        hint = f'write {VARIABLE}="name:key,name:key" with keys of {MIN_LENGTH} characters or more'
        if not colon or not name:
            raise ServingError(f"entry {number} of {VARIABLE} is not name:key", hint)
        if len(key) < MIN_LENGTH:
            raise ServingError(f"the key of {name!r} in {VARIABLE} has {len(key)} characters", hint)
        if name == PIPELINE:
            raise ServingError(f"{VARIABLE} names {name!r}, which is the pipeline's own", "give the key another name")
        if name in pairs:
            raise ServingError(f"{VARIABLE} names {name!r} twice", "give every key its own name")
        pairs[name] = key
    return pairs


def key_file(home: Path) -> Path:
    return home / "endpoint_key"


def file_key(path: Path) -> str:
    """The key in this file; made at the first call, so that only the file's owner can read it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_new(path, "ft-" + secrets.token_urlsafe(32))
    except OSError as error:
        raise storage_error(error, str(path)) from error
    with reading(path, f"delete {path}; a new one is made at the next start"):
        key = path.read_text("utf-8").strip()
    if len(key) < MIN_LENGTH:
        raise ServingError(f"{path} holds no key", f"delete {path}; a new one is made at the next start")
    return key


def _write_new(path: Path, key: str) -> None:
    """Write whole or not at all, and never over a key that another process made in the meantime."""
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
