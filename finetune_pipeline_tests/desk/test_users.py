"""Users, their file, sessions, and the delays of failed sign-ins."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from finetune_pipeline.desk import attempts as attempts_module
from finetune_pipeline.desk import open_sessions, users
from finetune_pipeline.desk.attempts import FREE_FOR_NETWORK, LONGEST_WAIT, Attempts, network_of
from finetune_pipeline.desk.private_files import signing_secret
from finetune_pipeline.desk.session import local_address
from finetune_pipeline.errors import DataError, StorageError
from finetune_pipeline.store import home

from .conftest import PASSWORD


def test_a_password_is_checked_against_its_hash(place: Path) -> None:
    assert users.check_password("anna", PASSWORD)
    assert not users.check_password("anna", PASSWORD + " ")
    assert not users.check_password("nobody", PASSWORD)
    assert PASSWORD not in users.users_file().read_text()


def test_only_the_owner_can_read_the_files(place: Path) -> None:
    signing_secret()
    for path in (users.users_file(), home() / "desk_secret"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_the_secret_is_kept_and_long(place: Path) -> None:
    assert signing_secret() == signing_secret()
    assert len(signing_secret()) == 64


def test_the_first_start_creates_steward_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_invalid_names_are_an_error(place: Path, name: str) -> None:
    with pytest.raises(DataError, match="is not a valid user name"):
        users.add_user(name, PASSWORD)


def test_short_passwords_and_unknown_users_are_errors(place: Path) -> None:
    with pytest.raises(DataError, match="has 5 characters"):
        users.add_user("carl", "short")
    with pytest.raises(DataError, match="use one of: anna, bert"):
        users.remove_user("carl")


@pytest.mark.parametrize("text", ["{", "[]", '{"anna": {}}', "\xff"])
def test_a_damaged_user_file_is_an_error(place: Path, text: str) -> None:
    users.users_file().write_text(text, "latin-1")
    with pytest.raises(StorageError, match=r"desk_users\.json is damaged"):
        users.check_password("anna", PASSWORD)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_failures_are_delayed_and_a_correct_password_resets_them() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(2):
        attempts.failed("anna", "192.0.2.7")
    assert attempts.wait("anna", "192.0.2.7") == 0
    attempts.failed("anna", "192.0.2.7")
    assert attempts.wait("anna", "192.0.2.7") == 1
    attempts.failed("anna", "192.0.2.7")
    assert attempts.wait("anna", "192.0.2.7") == 2
    clock.now += 2
    assert attempts.wait("anna", "192.0.2.7") == 0
    for _ in range(10):
        attempts.failed("anna", "192.0.2.7")
    assert attempts.wait("anna", "192.0.2.7") == LONGEST_WAIT
    attempts.succeeded("anna", "192.0.2.7")
    assert attempts.wait("anna", "192.0.2.7") == 0


def test_guessing_from_another_network_does_not_delay_the_user() -> None:
    attempts = Attempts(Clock())
    for _ in range(500):
        attempts.failed("anna", "203.0.113.9")
    assert attempts.wait("anna", "203.0.113.9") == LONGEST_WAIT
    assert attempts.wait("anna", "192.0.2.7") == 0


def test_a_network_that_tries_many_names_is_delayed_for_every_name() -> None:
    attempts = Attempts(Clock())
    for number in range(FREE_FOR_NETWORK):
        assert attempts.wait(f"user{number}", "203.0.113.9") == 0
        attempts.failed(f"user{number}", "203.0.113.9")
    assert attempts.wait("anna", "203.0.113.9") > 0
    attempts.failed("mallory", "203.0.113.9")
    attempts.succeeded("mallory", "203.0.113.9")  # the attacker's own account
    assert attempts.wait("anna", "203.0.113.9") > 0


def test_failures_expire() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(50):
        attempts.failed("anna", "192.0.2.7")
    clock.now += 1000
    attempts.failed("anna", "192.0.2.7")
    assert attempts.wait("anna", "192.0.2.7") == 0


def test_the_ipv6_addresses_of_one_customer_count_as_one() -> None:
    assert network_of("2001:db8:1:2::7") == network_of("2001:db8:1:2:ffff::1") != network_of("2001:db8:1:3::7")
    assert network_of("::ffff:192.0.2.7") == network_of("192.0.2.7")
    assert network_of("fe80::1%eth0") == "fe80::/64"
    assert network_of("testclient") == "testclient"


def test_the_number_of_stored_failures_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts_module, "MAX_ENTRIES", 10)
    attempts = Attempts(Clock())
    for number in range(200):
        for _ in range(4):
            attempts.failed(f"user{number}", f"192.0.2.{number}")
    assert len(attempts._failed) <= 10


def test_sessions_expire_and_are_limited_per_user(place: Path) -> None:
    ids = [open_sessions.begin("anna", float(second)) for second in range(open_sessions.PER_USER + 3)]
    assert [open_sessions.is_open(id_, "anna", 100.0) for id_ in ids] == [False] * 3 + [True] * open_sessions.PER_USER
    assert not open_sessions.is_open(ids[-1], "bert", 100.0)
    assert not open_sessions.is_open(ids[-1], "anna", 100.0 + open_sessions.DAYS * 86400)
    assert not open_sessions.is_open("", "anna", 100.0)
    text = open_sessions.sessions_file().read_text("utf-8")
    assert ids[-1] not in text
    assert stat.S_IMODE(open_sessions.sessions_file().stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["{", "[]", "3", "\xff", '{"x": {}}'])
def test_a_damaged_session_file_is_an_error(place: Path, text: str) -> None:
    open_sessions.sessions_file().write_text(text, "latin-1")
    with pytest.raises(StorageError, match=r"desk_sessions\.json is damaged"):
        open_sessions.is_open("x", "anna", 0.0)


def test_a_new_password_keeps_the_settings(place: Path) -> None:
    assert users.shortcuts("anna")
    users.set_shortcuts("anna", False)
    users.add_user("anna", PASSWORD + "!")
    assert not users.shortcuts("anna")
    assert users.shortcuts("bert")


@pytest.mark.parametrize("target", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\nb"])
def test_a_login_never_redirects_to_another_site(target: str) -> None:
    assert local_address(target) == "/"


def test_a_login_returns_to_the_requested_page() -> None:
    assert local_address("/tasks/x/review?row=1") == "/tasks/x/review?row=1"
