"""The sessions that are open, on the server: a cookie counts only as long as its session stands here.

    home()/desk_sessions.json     0600, {"<sha256 of the session's id>": {"user": "anna", "began": 1767607200}}

    id_ = begin("anna", now)      when a user signs in
    is_open(id_, "anna", now)     at every request
    end(id_)                      when the user signs out: a copy of the cookie is worth nothing from then on

A session ends DAYS after it began, however often it is used; of one user at most PER_USER are open, the oldest goes.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import TypedDict

from finetune_pipeline.desk.private_files import one_writer, write_private
from finetune_pipeline.errors import reading
from finetune_pipeline.store import home

DAYS = 7
PER_USER = 20


class Open(TypedDict):
    user: str
    began: float


def sessions_file() -> Path:
    return home() / "desk_sessions.json"


def begin(user: str, now: float) -> str:
    """Open a session; gives its id, which is kept here as a hash alone."""
    id_ = secrets.token_urlsafe(24)
    with one_writer(sessions_file()):
        valid = {key: each for key, each in _read().items() if _lasts(each, now)}
        mine = sorted((key for key, each in valid.items() if each["user"] == user), key=lambda key: valid[key]["began"])
        for key in mine[: max(0, len(mine) - PER_USER + 1)]:
            del valid[key]
        valid[_key(id_)] = {"user": user, "began": now}
        write_private(sessions_file(), json.dumps(valid, indent=1))
    return id_


def is_open(id_: str, user: str, now: float) -> bool:
    found = _read().get(_key(id_))
    return found is not None and found["user"] == user and _lasts(found, now)


def end(id_: str) -> None:
    """Close a session; nothing happens when it is closed already."""
    with one_writer(sessions_file()):
        sessions = _read()
        if sessions.pop(_key(id_), None) is not None:
            write_private(sessions_file(), json.dumps(sessions, indent=1))


def _lasts(each: Open, now: float) -> bool:
    return now - each["began"] < DAYS * 86400


def _key(id_: str) -> str:
    return hashlib.sha256(id_.encode("utf-8", "surrogatepass")).hexdigest()


def _read() -> dict[str, Open]:
    with reading(sessions_file(), "delete it; everybody has to sign in again"):
        try:
            text = sessions_file().read_text("utf-8")
        except FileNotFoundError:
            return {}
        sessions: dict[str, Open] = json.loads(text)
        for each in sessions.values():
            float(each["began"])
    return sessions
