"""Open sessions on the server: a cookie is valid only while its session is listed here.

    home()/desk_sessions.json     0600, {"<sha256 of the session's id>": {"user": "anna", "began": 1767607200}}

    id_ = begin("anna", now)      when a user signs in
    is_open(id_, "anna", now)     at every request
    end(id_)                      when the user signs out: a copy of the cookie is then invalid

A session ends DAYS after it began, also when it is used. A user has at most PER_USER; the oldest is closed.
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


class OpenSession(TypedDict):
    """`began` is a Unix time in seconds."""

    user: str
    began: float


def sessions_file() -> Path:
    return home() / "desk_sessions.json"


def begin(user: str, now: float) -> str:
    """Open a session; returns its id, of which only a hash is stored."""
    id_ = secrets.token_urlsafe(24)
    with one_writer(sessions_file()):
        valid = {key: session for key, session in _read().items() if _is_valid(session, now)}
        own = sorted((key for key in valid if valid[key]["user"] == user), key=lambda key: valid[key]["began"])
        for key in own[: max(0, len(own) - PER_USER + 1)]:
            del valid[key]
        valid[_key(id_)] = {"user": user, "began": now}
        write_private(sessions_file(), json.dumps(valid, indent=1))
    return id_


def is_open(id_: str, user: str, now: float) -> bool:
    """Whether this session of this user is open at the time `now`."""
    session = _read().get(_key(id_))
    return session is not None and session["user"] == user and _is_valid(session, now)


def end(id_: str) -> None:
    """Close a session; does nothing if it is closed."""
    with one_writer(sessions_file()):
        sessions = _read()
        if sessions.pop(_key(id_), None) is not None:
            write_private(sessions_file(), json.dumps(sessions, indent=1))


def _is_valid(session: OpenSession, now: float) -> bool:
    return now - session["began"] < DAYS * 86400


def _key(id_: str) -> str:
    return hashlib.sha256(id_.encode("utf-8", "surrogatepass")).hexdigest()


def _read() -> dict[str, OpenSession]:
    with reading(sessions_file(), "delete it; all users have to sign in again"):
        try:
            text = sessions_file().read_text("utf-8")
        except FileNotFoundError:
            return {}
        sessions: dict[str, OpenSession] = json.loads(text)
        for session in sessions.values():
            float(session["began"])
    return sessions
