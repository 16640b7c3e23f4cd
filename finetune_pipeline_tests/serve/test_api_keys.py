"""API keys: where they come from, and who gets in."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from finetune_pipeline.config.addresses import is_loopback
from finetune_pipeline.errors import ServingError
from finetune_pipeline.serve.api_keys import client_key, file_key, key_file, load_keys

EVERYWHERE = "0.0.0.0"  # noqa: S104 - nothing is bound here
KEYS = {"FINETUNE_API_KEYS": "shop:0123456789, desk:abcdefghij"}


def test_the_owner_of_a_key_is_known_by_name(tmp_path: Path) -> None:
    keys = load_keys(KEYS, tmp_path, "127.0.0.1")
    assert keys.owner("Bearer 0123456789") == "shop"
    assert keys.owner("bearer abcdefghij") == "desk"
    assert keys.owner(f"Bearer {client_key(tmp_path)}") == "pipeline"
    assert not key_file(tmp_path).exists()


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "0123456789", "Basic 0123456789", "Bearer 012345678", "Bearer schlüssel"]
)
def test_everybody_else_stays_out(tmp_path: Path, header: str | None) -> None:
    assert load_keys(KEYS, tmp_path, "127.0.0.1").owner(header) is None


def test_the_key_of_the_machine_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = file_key(key_file(tmp_path / "home"))
    assert key == file_key(key_file(tmp_path / "home")) and len(key) > 30
    assert stat.S_IMODE(key_file(tmp_path / "home").stat().st_mode) == 0o600
    assert load_keys({}, tmp_path / "home", "localhost").owner(f"Bearer {key}") == "local"
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["endpoint_key", "pipeline_key"]


def test_keys_are_not_kept_in_clear(tmp_path: Path) -> None:
    assert "0123456789" not in repr(load_keys(KEYS, tmp_path, "127.0.0.1"))


def test_listening_to_others_needs_keys_given_on_purpose(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match=r"0\.0\.0\.0.*\n.*FINETUNE_API_KEYS"):
        load_keys({}, tmp_path, EVERYWHERE)
    assert load_keys(KEYS, tmp_path, EVERYWHERE).owner("Bearer 0123456789") == "shop"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0123456789", "entry 1"),
        ("a:short", "5 characters"),
        ("a:12345678,a:12345678", "twice"),
        ("pipeline:12345678", "own"),
    ],
)
def test_malformed_keys_are_refused_without_showing_them(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ServingError, match=says) as caught:
        load_keys({"FINETUNE_API_KEYS": text}, tmp_path, "127.0.0.1")
    assert "0123456789" not in str(caught.value)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "::1", "localhost")))
    assert not any(map(is_loopback, (EVERYWHERE, "::", "10.0.0.5", "example.com")))
