"""The file of the deployment state: read back, damaged, written concurrently, with fields of a newer release."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from finetune_pipeline.errors import StorageError
from finetune_pipeline.serve import deployment_state, transitions
from finetune_pipeline.serve.deployment_state import DeploymentState
from finetune_pipeline_tests.artifacts import task_store
from finetune_pipeline_tests.serve.versions import promoted, version


def test_the_state_is_read_back_from_its_file(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    assert deployment_state.read(store) == DeploymentState()
    state = transitions.roll_back(transitions.add_challenger(promoted(1, 2), version(3)), "2026-02-01", "why")
    deployment_state.update(store, lambda _: state)
    assert deployment_state.read(store) == state


def test_a_damaged_file_raises_its_name(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    deployment_state.update(store, lambda _: promoted(1))
    path = tmp_path / "data" / "parcels" / "11_serve" / "deployment_state.json"
    for text in (
        b"{",
        b"{}",
        b"[]",
        b"\xff",
        b'{"champion": null, "challenger": null, "held": [1], "history": [], "previous": []}',
    ):
        path.write_bytes(text)
        with pytest.raises(StorageError, match=r"deployment_state\.json is damaged"):
            deployment_state.read(store)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"deployment_state\.json cannot be read: Is a directory"):
        deployment_state.read(store)


def test_concurrent_updates_are_all_kept(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    threads = [
        threading.Thread(
            target=lambda n=n: deployment_state.update(store, lambda s: transitions.promote(s, version(n), s.champion))
        )
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {m.version for m in deployment_state.read(store).history} == set(range(1, 9))


def test_fields_of_a_newer_release_are_kept(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    deployment_state.update(store, lambda _: transitions.add_challenger(promoted(1, 2), version(3)))
    path = tmp_path / "data" / "parcels" / "11_serve" / "deployment_state.json"
    raw = json.loads(path.read_text())
    raw["weights"] = {"canary": 0.1}
    raw["champion"]["engine"], raw["challenger"]["engine"] = "vllm", ["llama.cpp"]
    raw["previous"][0]["engine"], raw["history"][0]["who"] = None, "anna"
    path.write_text(json.dumps(raw))
    assert deployment_state.read(store).champion.version == 2  # type: ignore[union-attr]
    deployment_state.update(store, lambda s: transitions.roll_back(s, "2026-02-01", "why"))
    now = json.loads(path.read_text())
    assert now["weights"] == {"canary": 0.1} and now["history"][0]["who"] == "anna"
    assert now["champion"]["version"] == 1 and now["champion"]["engine"] is None
    deployment_state.update(store, lambda s: transitions.promote(s, version(3), s.champion))
    again = json.loads(path.read_text())
    assert again["previous"][0]["engine"] is None and "unknown" not in json.dumps(again)
