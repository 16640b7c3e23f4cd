"""Users, their file, and the slowing of guesses."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from finetune_pipeline.desk import users
from finetune_pipeline.desk.private import signing_secret
from finetune_pipeline.desk.session import LONGEST_WAIT, Attempts, local_address
from finetune_pipeline.errors import DataError, StorageError
from finetune_pipeline.store import home

from .conftest import PASSWORD


def test_a_password_is_checked_against_its_hash(place: Path) -> None:
    assert users.check_password("anna", PASSWORD)
    assert not users.check_password("anna", PASSWORD + " ")
    assert not users.check_password("nobody", PASSWORD)
    assert PASSWORD not in users.users_file().read_text()


def test_files_are_readable_by_their_owner_alone(place: Path) -> None:
    signing_secret()
    for path in (users.users_file(), home() / "desk_secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_secret_stays_and_is_long(place: Path) -> None:
    assert signing_secret() == signing_secret()
    assert len(signing_secret()) == 64


def test_first_start_makes_steward_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.setattr(users, "COST", 2**4)
    password = users.first_start()
    assert password is not None and users.check_password("steward", password)
    assert users.first_start() is None
    assert not users.made_by_person()
    users.add_user("anna", PASSWORD)
    assert users.made_by_person()


def test_a_new_password_changes_the_stamp(place: Path) -> None:
    before = users.stamp("anna")
    users.add_user("anna", PASSWORD + "!")
    assert users.stamp("anna") not in (None, before)
    users.remove_user("anna")
    assert users.stamp("anna") is None


@pytest.mark.parametrize("name", ["", "../x", "a b", "-anna", "x" * 65])
def test_odd_names_are_refused(place: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be a user's name"):
        users.add_user(name, PASSWORD)


def test_short_passwords_and_unknown_users_are_named(place: Path) -> None:
    with pytest.raises(DataError, match="has 5 characters"):
        users.add_user("carl", "short")
    with pytest.raises(DataError, match="its users are: anna, bert"):
        users.remove_user("carl")


def test_a_damaged_file_is_named(place: Path) -> None:
    users.users_file().write_text("{")
    with pytest.raises(StorageError, match=r"desk_users\.json is damaged"):
        users.check_password("anna", PASSWORD)


def test_guessing_gets_slower_and_a_right_password_forgives() -> None:
    now = [100.0]
    attempts = Attempts(clock=lambda: now[0])
    for _ in range(2):
        attempts.failed("name:anna")
    assert attempts.wait("name:anna", "address:1") == 0
    attempts.failed("name:anna")
    assert attempts.wait("name:anna", "address:1") == 1
    attempts.failed("name:anna")
    assert attempts.wait("name:anna") == 2
    now[0] += 2
    assert attempts.wait("name:anna") == 0
    for _ in range(20):
        attempts.failed("name:anna")
    assert attempts.wait("name:anna") == LONGEST_WAIT
    attempts.succeeded("name:anna")
    assert attempts.wait("name:anna") == 0


def test_remembered_guesses_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_pipeline.desk.session.MOST_REMEMBERED", 10)
    attempts = Attempts(clock=lambda: 0.0)
    for number in range(200):
        attempts.failed(f"name:{number}")
    assert len(attempts._failed) <= 12


@pytest.mark.parametrize("wanted", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\nb"])
def test_a_login_sends_nobody_elsewhere(wanted: str) -> None:
    assert local_address(wanted) == "/"


def test_a_login_goes_back_where_one_came_from() -> None:
    assert local_address("/tasks/x/review?row=1") == "/tasks/x/review?row=1"
