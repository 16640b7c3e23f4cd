"""Users of the desk: names and scrypt hashes in home()/desk_users.json, with mode 0600.

    {"anna": {"password": "scrypt$16384$8$5$<salt>$<hash>", "made_by": "person", "shortcuts": false}}

    add_user("anna", "correct horse battery")     creates a user, or sets a new password
    first_start()                                 creates `steward` with a random password if there are no users

There are no roles: every user may read and review. Sessions are in session.py.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from pathlib import Path
from typing import NotRequired, TypedDict

from finetune_pipeline.desk.private_files import one_writer, write_private
from finetune_pipeline.errors import DataError, reading
from finetune_pipeline.store import home

# OWASP Password Storage Cheat Sheet: N=2^14, r=8, p=5 is as strong as N=2^17, p=1, and takes 16 MiB, not 128
COST, BLOCK, PARALLEL = 2**14, 8, 5
MIN_LENGTH = 10
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class User(TypedDict):
    """`password`: "scrypt$cost$block$parallel$salt$hash"; `made_by`: "person" or "first start"; `shortcuts`: whether
    single-key shortcuts are on (default: yes)."""

    password: str
    made_by: str
    shortcuts: NotRequired[bool]


def users_file() -> Path:
    return home() / "desk_users.json"


def add_user(name: str, password: str) -> None:
    """Create a user, or replace a user's password; open sessions of that user end.

    DataError for a name with other characters than letters, digits, . _ @ -, or a password under 10 characters.
    """
    if not NAME.fullmatch(name):
        raise DataError(
            f"`{name}` is not a valid user name", "use letters, digits, and . _ @ -, beginning with a letter or digit"
        )
    if len(password) < MIN_LENGTH:
        raise DataError(f"the password of {name} has {len(password)} characters", f"use {MIN_LENGTH} or more")
    _save(name, password, made_by="person")


def remove_user(name: str) -> None:
    """Remove a user; open sessions end at the next request. DataError when there is no such user."""
    with one_writer(users_file()):
        users = read_users()
        if name not in users:
            raise DataError(f"the desk has no user `{name}`", f"use one of: {', '.join(sorted(users)) or '(no users)'}")
        del users[name]
        write_private(users_file(), json.dumps(users, indent=1))


def first_start() -> str | None:
    """Create the user `steward` if there are no users; returns the password, of which only a hash is stored. Else
    None."""
    with one_writer(users_file()):
        if read_users():
            return None
    password = secrets.token_urlsafe(12)
    _save("steward", password, made_by="first start")
    return password


def announce(password: str) -> str:
    """The message about the user of the first start, to be shown once."""
    return (
        f"The desk has no users yet. Sign in as `steward` with the password {password}\n"
        "It is shown only once; `finetune user NAME` creates a user, or sets a new password."
    )


def made_by_person() -> bool:
    """Whether a person created a user: the password of the first start is in a log, and not safe on a network."""
    return any(user["made_by"] == "person" for user in read_users().values())


def check_password(name: str, password: str) -> bool:
    """Whether the password is correct. Takes the same time for an unknown name."""
    user = read_users().get(name)
    matches = _matches(password, user["password"] if user else _NO_USER)
    return matches and user is not None


def stamp(name: str) -> str | None:
    """A hash of the user's password hash, stored in the session, so that a new password ends old sessions; None for an
    unknown user."""
    user = read_users().get(name)
    return hashlib.sha256(user["password"].encode()).hexdigest()[:16] if user else None


def read_users() -> dict[str, User]:
    """All users by name. StorageError when the file is damaged."""
    with reading(users_file(), "delete it; the next start creates `steward` with a new password"):
        try:
            text = users_file().read_text("utf-8")
        except FileNotFoundError:
            return {}
        users: dict[str, User] = json.loads(text)
        for user in users.values():
            str(user["password"])
    return users


def shortcuts(name: str) -> bool:
    """Whether single-key shortcuts are on for this user (A approves, and so on). They can be switched off, since speech
    input and tremor press keys unintentionally (WCAG 2.1.4)."""
    user = read_users().get(name)
    return user is None or user.get("shortcuts", True)


def set_shortcuts(name: str, on: bool) -> None:
    """Save the setting; does nothing for an unknown user."""
    with one_writer(users_file()):
        users = read_users()
        if name in users:
            users[name]["shortcuts"] = on
            write_private(users_file(), json.dumps(users, indent=1))


def _save(name: str, password: str, made_by: str) -> None:
    with one_writer(users_file()):
        users = read_users()
        hashed = _hashed(password, secrets.token_bytes(16), COST, BLOCK, PARALLEL)
        shortcuts = name not in users or users[name].get("shortcuts", True)
        users[name] = {"password": hashed, "made_by": made_by, "shortcuts": shortcuts}
        write_private(users_file(), json.dumps(users, indent=1))


def _hashed(password: str, salt: bytes, cost: int, block: int, parallel: int) -> str:
    digest = hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=cost, r=block, p=parallel, maxmem=2**27, dklen=32
    )
    return "$".join(["scrypt", str(cost), str(block), str(parallel), _text(salt), _text(digest)])


def _matches(password: str, stored: str) -> bool:
    _, cost, block, parallel, salt, _ = stored.split("$")
    computed = _hashed(password, base64.b64decode(salt), int(cost), int(block), int(parallel))
    return hmac.compare_digest(computed, stored)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


_NO_USER = f"scrypt${COST}${BLOCK}${PARALLEL}${_text(bytes(16))}${_text(bytes(32))}"
