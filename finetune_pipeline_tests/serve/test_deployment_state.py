"""The deployment state: its transitions (promotion, rollback, hold), and its file."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch

from finetune_pipeline.errors import GateRefused, StorageError
from finetune_pipeline.serve import deployment_state, transitions
from finetune_pipeline.serve.deployment_state import DeploymentState, Version
from finetune_pipeline_tests.artifacts import task_store


def version(number: int) -> Version:
    hashes: Any = {name: f"{name}-{number}" for name in ("adapter", "adapter_key", "registered", "evaluation")}
    return Version(
        version=number, base="base", served_as="parcels", max_new_tokens=32, on_invalid="flag", log_text=True,
        at=f"2026-01-0{number}", **hashes,
    )  # fmt: skip


def promoted(*numbers: int) -> DeploymentState:
    state = DeploymentState()
    for number in numbers:
        state = transitions.promote(state, version(number), state.champion)
    return state


def test_the_old_champion_is_kept_for_rollback() -> None:
    state = promoted(1, 2, 3)
    assert state.champion == version(3)
    assert [v.version for v in state.previous] == [2, 1]
    assert [(m.action, m.before, m.after) for m in state.history][-1] == ("promote", "registered-2", "registered-3")


def test_a_challenger_leaves_the_champion_in_place() -> None:
    state = transitions.add_challenger(promoted(1), version(2))
    assert state.champion == version(1) and state.challenger == version(2)
    assert transitions.remove_challenger(state, version(2)) == promoted(1)
    assert transitions.remove_challenger(state, version(3)) == state


def test_each_rollback_restores_one_version_and_holds_the_other() -> None:
    once = transitions.roll_back(promoted(1, 2, 3), "2026-02-01", "wrong prices")
    assert once.champion == replace(version(2), at="2026-02-01")
    assert once.held["adapter-3"].endswith("2026-02-01: wrong prices")
    twice = transitions.roll_back(once, "2026-02-02", "")
    assert twice.champion is not None and twice.champion.version == 1 and set(twice.held) == {"adapter-3", "adapter-2"}
    with pytest.raises(GateRefused, match="no earlier version"):
        transitions.roll_back(twice, "2026-02-03", "")


def test_a_held_version_is_not_deployed_until_the_hold_is_removed() -> None:
    state = transitions.roll_back(promoted(1, 2), "2026-02-01", "")
    with pytest.raises(GateRefused, match="version 2 was rolled back"):
        transitions.add_challenger(state, version(2))
    with pytest.raises(GateRefused, match="version 2 was rolled back"):
        transitions.promote(state, version(2), state.champion)
    unheld = transitions.remove_hold(state, "adapter-2", 2, "registered-2", "2026-02-02", "the shop was wrong")
    assert transitions.promote(unheld, version(2), unheld.champion).champion == version(2)


def test_a_deployment_does_not_invalidate_itself_and_a_rollback_does() -> None:
    counts = [transitions.invalidations(state, "registered-2") for state in (promoted(1), promoted(1, 2))]
    assert counts == [0, 0]
    rolled = transitions.roll_back(promoted(1, 2), "2026-02-01", "")
    unheld = transitions.remove_hold(rolled, "adapter-2", 2, "registered-2", "2026-02-02", "")
    again = transitions.promote(unheld, version(2), unheld.champion)
    assert [transitions.invalidations(state, "registered-2") for state in (rolled, unheld, again)] == [1, 2, 2]
    assert (
        transitions.invalidations(promoted(1, 2, 3), "registered-2") == 1
    )  # an older model that becomes current again is deployed again


def test_new_settings_of_the_same_model_add_no_previous_version() -> None:
    state = transitions.promote(promoted(1, 2), replace(version(2), on_invalid="reject", at="2026-03-01"), version(2))
    assert [v.version for v in state.previous] == [1]
    assert state.history[-1].action == "settings" and transitions.invalidations(state, "registered-2") == 0


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


def test_a_deployment_reverts_its_own_promotion_only() -> None:
    before = transitions.add_challenger(promoted(1, 2), version(3))
    after = transitions.promote(before, version(3), version(2))
    undone = transitions.revert_promotion(after, version(3), before)
    assert undone == promoted(1, 2)
    rolled = transitions.roll_back(after, "2026-02-01", "wrong prices")
    assert transitions.revert_promotion(rolled, version(3), before) == rolled and rolled.held
    unheld = transitions.remove_hold(replace(after, held={"other": "x"}), "other", 9, "registered-9", "2026-02-01", "")
    assert transitions.revert_promotion(unheld, version(3), before).held == {}
    settings = replace(version(2), on_invalid="reject")
    assert transitions.revert_promotion(
        transitions.promote(promoted(1, 2), settings, version(2)), settings, promoted(1, 2)
    ) == promoted(1, 2)


def test_a_deployment_does_not_override_a_rollback_during_it() -> None:
    start = transitions.add_challenger(promoted(1, 2), version(3))
    rolled = transitions.roll_back(start, "2026-02-01", "wrong prices")
    with pytest.raises(GateRefused, match="during the deployment the champion became version 1"):
        transitions.promote(rolled, version(3), start.champion)


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


def test_the_live_version_does_not_change_when_the_candidate_is_deployed() -> None:
    def live(state: DeploymentState, number: int) -> int | None:
        version = transitions.live_version(state, f"adapter-{number}")
        return version.version if version else None

    assert live(DeploymentState(), 1) is None
    assert live(promoted(1), 1) is None  # the first version, after its own deployment
    assert [live(promoted(1), 2), live(promoted(1, 2), 2)] == [1, 1]
    assert live(transitions.roll_back(promoted(1, 2), "2026-02-01", ""), 2) == 1  # and after it was rolled back
    assert live(promoted(1, 2), 3) == 2
    again = replace(version(2), registered="registered-2b", version=5)  # the same adapter under another description
    assert live(transitions.promote(promoted(1, 2), again, version(2)), 2) == 1
    assert [live(promoted(1, 2), 1), live(promoted(1, 2, 1), 1)] == [2, 2]  # an older candidate comes back
