"""Who may use the desk: names and scrypt hashes in home()/desk_users.json, readable by its owner alone.

    {"anna": {"password": "scrypt$16384$8$5$<salt>$<hash>", "made_by": "person", "shortcuts": false}}

    add_user("anna", "correct horse battery")     a person makes a user, or gives one a new password
    first_start()                                 makes `steward` with a random password if there is nobody yet

What it is not: the session (session.py). There are no roles: whoever may read may also review.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from pathlib import Path
from typing import Any

from finetune_pipeline.desk.private_files import one_writer, write_private
from finetune_pipeline.errors import DataError, reading
from finetune_pipeline.store import home

# OWASP Password Storage Cheat Sheet: N=2^14, r=8, p=5 is as strong as N=2^17, p=1, and takes 16 MiB, not 128
COST, BLOCK, LANES = 2**14, 8, 5
SHORTEST = 10
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def users_file() -> Path:
    return home() / "desk_users.json"


def add_user(name: str, password: str) -> None:
    """Make a user, or replace a user's password; open sessions of that user end.

    DataError for a name with other characters than letters, digits, . _ @ -, or a password under 10 characters.
    """
    if not NAME.fullmatch(name):
        raise DataError(
            f"`{name}` cannot be a user's name", "use letters, digits, and . _ @ -, beginning with a letter or digit"
        )
    if len(password) < SHORTEST:
        raise DataError(f"the password of {name} has {len(password)} characters", f"use {SHORTEST} or more")
    _keep(name, password, made_by="person")


def remove_user(name: str) -> None:
    """Take a user out; that user's sessions end with the next click. DataError when there is none of that name."""
    with one_writer(users_file()):
        users = read_users()
        if name not in users:
            raise DataError(f"the desk has no user `{name}`", f"its users are: {', '.join(sorted(users)) or 'nobody'}")
        del users[name]
        write_private(users_file(), json.dumps(users, indent=1))


def first_start() -> str | None:
    """Make the user `steward` if there is nobody yet; gives the password, which is kept nowhere. Else None."""
    with one_writer(users_file()):
        if read_users():
            return None
    password = secrets.token_urlsafe(12)
    _keep("steward", password, made_by="first start")
    return password


def made_by_person() -> bool:
    """Is there a user whom a person made? A password printed into a start-up log is none to put on a network."""
    return any(user["made_by"] == "person" for user in read_users().values())


def check_password(name: str, password: str) -> bool:
    """True if the password is that of the user. Takes as long for a name that does not exist."""
    user = read_users().get(name)
    matches = _matches(password, user["password"] if user else _NOBODY)
    return matches and user is not None


def stamp(name: str) -> str | None:
    """Fingerprint of the user's present password hash, kept in the session: a changed password ends old sessions."""
    user = read_users().get(name)
    return hashlib.sha256(user["password"].encode()).hexdigest()[:16] if user else None


def read_users() -> dict[str, dict[str, Any]]:
    with reading(users_file(), "delete it; the next start makes `steward` with a new password"):
        try:
            text = users_file().read_text("utf-8")
        except FileNotFoundError:
            return {}
        users: dict[str, dict[str, Any]] = json.loads(text)
        for user in users.values():
            str(user["password"])
    return users


def shortcuts(name: str) -> bool:
    """Does this user want single keys to act (A approves, and so on)? Speech input and unsteady hands press
    them unmeant, so that they can be switched off (WCAG 2.1.4)."""
    return bool(read_users().get(name, {}).get("shortcuts", True))


def set_shortcuts(name: str, on: bool) -> None:
    """Remember it; nothing happens when the user is gone meanwhile."""
    with one_writer(users_file()):
        users = read_users()
        if name in users:
            users[name]["shortcuts"] = on
            write_private(users_file(), json.dumps(users, indent=1))


def _keep(name: str, password: str, made_by: str) -> None:
    with one_writer(users_file()):
        users = read_users()
        hashed = _hashed(password, secrets.token_bytes(16), COST, BLOCK, LANES)
        users[name] = {**users.get(name, {}), "password": hashed, "made_by": made_by}
        write_private(users_file(), json.dumps(users, indent=1))


def _hashed(password: str, salt: bytes, cost: int, block: int, lanes: int) -> str:
    digest = hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=cost, r=block, p=lanes, maxmem=2**27, dklen=32
    )
    return "$".join(["scrypt", str(cost), str(block), str(lanes), _text(salt), _text(digest)])


def _matches(password: str, kept: str) -> bool:
    _, cost, block, lanes, salt, _ = kept.split("$")
    again = _hashed(password, base64.b64decode(salt), int(cost), int(block), int(lanes))
    return hmac.compare_digest(again, kept)


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


_NOBODY = f"scrypt${COST}${BLOCK}${LANES}${_text(bytes(16))}${_text(bytes(32))}"
