"""A desk with sample tasks: `client` calls the app, `desk_url` is a server on loopback."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from finetune_pipeline.desk import users
from finetune_pipeline.desk.app import create_app

PASSWORD = "correct horse battery"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty data and home folders, with the users anna and bert."""
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(users, "COST", 2**4)  # fast hashes: the passwords of the tests protect nothing
    for name in ("anna", "bert"):
        users.add_user(name, PASSWORD)
    return tmp_path


@pytest.fixture
def client(place: Path) -> Iterator[TestClient]:
    """A client without a user: see `sign_in`."""
    with TestClient(create_app(), follow_redirects=False, base_url="http://127.0.0.1") as client:
        yield client


@pytest.fixture
def desk_url(place: Path) -> Iterator[str]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)
    listening.close()


def sign_in(client: TestClient, name: str = "anna") -> TestClient:
    response = client.post("/login", data={"name": name, "password": PASSWORD, "csrf": token(client, "/login")})
    assert response.status_code == 303, response.text
    return client


def token(client: TestClient, page: str) -> str:
    """The CSRF token of the forms on a page."""
    match = re.search(r'name="csrf" value="([^"]+)"', client.get(page).text)
    assert match is not None
    return match[1]


def hidden(text: str, name: str) -> str:
    match = re.search(rf'name="{name}" value="([^"]*)"', text)
    assert match is not None, f"no hidden field {name}"
    return match[1]
