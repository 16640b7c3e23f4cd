"""The desired state: what promotion, rollback and holds do to it, and that its file survives."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pytest import MonkeyPatch

from finetune_pipeline.errors import GateRefused, StorageError
from finetune_pipeline.serve import deployment_state
from finetune_pipeline.serve.deployment_state import Desired, Version
from finetune_pipeline_tests.artifacts import task_store


def version(number: int) -> Version:
    hashes: Any = {name: f"{name}-{number}" for name in ("adapter", "adapter_key", "registered", "evaluation")}
    return Version(
        version=number, base="base", served_as="parcels", max_new_tokens=32, on_invalid="flag", log_text=True,
        at=f"2026-01-0{number}", **hashes,
    )  # fmt: skip


def after(*numbers: int) -> Desired:
    state = Desired()
    for number in numbers:
        state = deployment_state.promote(state, version(number), state.champion)
    return state


def test_the_champion_before_is_the_one_to_fall_back_on() -> None:
    state = after(1, 2, 3)
    assert state.champion == version(3)
    assert [v.version for v in state.previous] == [2, 1]
    assert [(m.what, m.before, m.after) for m in state.history][-1] == ("promote", "registered-2", "registered-3")


def test_a_challenger_takes_nothing_from_the_champion() -> None:
    state = deployment_state.challenge(after(1), version(2))
    assert state.champion == version(1) and state.challenger == version(2)
    assert deployment_state.withdraw(state, version(2)) == after(1)
    assert deployment_state.withdraw(state, version(3)) == state


def test_rollback_goes_back_one_by_one_and_holds_what_was_left() -> None:
    once = deployment_state.back(after(1, 2, 3), "2026-02-01", "wrong prices")
    assert once.champion == replace(version(2), at="2026-02-01")
    assert once.held["adapter-3"].endswith("2026-02-01: wrong prices")
    twice = deployment_state.back(once, "2026-02-02", "")
    assert twice.champion is not None and twice.champion.version == 1 and set(twice.held) == {"adapter-3", "adapter-2"}
    with pytest.raises(GateRefused, match="no earlier version"):
        deployment_state.back(twice, "2026-02-03", "")


def test_what_is_held_is_not_deployed_until_somebody_says_so() -> None:
    state = deployment_state.back(after(1, 2), "2026-02-01", "")
    with pytest.raises(GateRefused, match="version 2 was rolled back"):
        deployment_state.challenge(state, version(2))
    with pytest.raises(GateRefused, match="version 2 was rolled back"):
        deployment_state.promote(state, version(2), state.champion)
    lifted = deployment_state.lift(state, "adapter-2", 2, "registered-2", "2026-02-02", "it was the shop's fault")
    assert deployment_state.promote(lifted, version(2), lifted.champion).champion == version(2)


def test_a_deployment_leaves_its_own_key_as_it_was_and_what_undoes_it_changes_it() -> None:
    moves = [deployment_state.moves_of(state, "registered-2") for state in (after(1), after(1, 2))]
    assert moves == [0, 0]
    rolled = deployment_state.back(after(1, 2), "2026-02-01", "")
    lifted = deployment_state.lift(rolled, "adapter-2", 2, "registered-2", "2026-02-02", "")
    again = deployment_state.promote(lifted, version(2), lifted.champion)
    assert [deployment_state.moves_of(state, "registered-2") for state in (rolled, lifted, again)] == [1, 2, 2]
    assert (
        deployment_state.moves_of(after(1, 2, 3), "registered-2") == 1
    )  # an older model that becomes current again is deployed


def test_other_settings_of_the_same_model_are_no_change_of_model() -> None:
    state = deployment_state.promote(after(1, 2), replace(version(2), on_invalid="reject", at="2026-03-01"), version(2))
    assert [v.version for v in state.previous] == [1]
    assert state.history[-1].what == "settings" and deployment_state.moves_of(state, "registered-2") == 0


def test_the_file_says_what_the_state_is(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    assert deployment_state.read(store) == Desired()
    state = deployment_state.back(deployment_state.challenge(after(1, 2), version(3)), "2026-02-01", "why")
    deployment_state.change(store, lambda _: state)
    assert deployment_state.read(store) == state


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    deployment_state.change(store, lambda _: after(1))
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


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    threads = [
        threading.Thread(
            target=lambda n=n: deployment_state.change(
                store, lambda s: deployment_state.promote(s, version(n), s.champion)
            )
        )
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {m.version for m in deployment_state.read(store).history} == set(range(1, 9))


def test_a_deployment_takes_back_its_own_move_and_nothing_else() -> None:
    before = deployment_state.challenge(after(1, 2), version(3))
    moved = deployment_state.promote(before, version(3), version(2))
    undone = deployment_state.undo(moved, version(3), before)
    assert undone == after(1, 2)
    rolled = deployment_state.back(moved, "2026-02-01", "wrong prices")
    assert deployment_state.undo(rolled, version(3), before) == rolled and rolled.held
    lifted = deployment_state.lift(replace(moved, held={"other": "x"}), "other", 9, "registered-9", "2026-02-01", "")
    assert deployment_state.undo(lifted, version(3), before).held == {}
    settings = replace(version(2), on_invalid="reject")
    assert deployment_state.undo(
        deployment_state.promote(after(1, 2), settings, version(2)), settings, after(1, 2)
    ) == after(1, 2)


def test_a_deployment_does_not_override_a_rollback_in_the_meantime() -> None:
    began = deployment_state.challenge(after(1, 2), version(3))
    rolled = deployment_state.back(began, "2026-02-01", "wrong prices")
    with pytest.raises(GateRefused, match="meanwhile the champion became version 1"):
        deployment_state.promote(rolled, version(3), began.champion)


def test_fields_of_a_newer_release_are_kept(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    deployment_state.change(store, lambda _: deployment_state.challenge(after(1, 2), version(3)))
    path = tmp_path / "data" / "parcels" / "11_serve" / "deployment_state.json"
    raw = json.loads(path.read_text())
    raw["weights"] = {"canary": 0.1}
    raw["champion"]["engine"], raw["challenger"]["engine"] = "vllm", ["llama.cpp"]
    raw["previous"][0]["engine"], raw["history"][0]["who"] = None, "anna"
    path.write_text(json.dumps(raw))
    assert deployment_state.read(store).champion.version == 2  # type: ignore[union-attr]
    deployment_state.change(store, lambda s: deployment_state.back(s, "2026-02-01", "why"))
    now = json.loads(path.read_text())
    assert now["weights"] == {"canary": 0.1} and now["history"][0]["who"] == "anna"
    assert now["champion"]["version"] == 1 and now["champion"]["engine"] is None
    deployment_state.change(store, lambda s: deployment_state.promote(s, version(3), s.champion))
    again = json.loads(path.read_text())
    assert again["previous"][0]["engine"] is None and "unknown" not in json.dumps(again)


def test_the_opponent_is_what_is_live_and_stays_so_when_the_candidate_is_deployed() -> None:
    def opponent(state: Desired, number: int) -> int | None:
        found = deployment_state.opponent(state, f"adapter-{number}")
        return found.version if found else None

    assert opponent(Desired(), 1) is None
    assert opponent(after(1), 1) is None  # the first one, after its own deployment
    assert [opponent(after(1), 2), opponent(after(1, 2), 2)] == [1, 1]
    assert opponent(deployment_state.back(after(1, 2), "2026-02-01", ""), 2) == 1  # and after it was rolled back
    assert opponent(after(1, 2), 3) == 2
    again = replace(version(2), registered="registered-2b", version=5)  # the same adapter under another description
    assert opponent(deployment_state.promote(after(1, 2), again, version(2)), 2) == 1
    assert [opponent(after(1, 2), 1), opponent(after(1, 2, 1), 1)] == [2, 2]  # an older candidate comes back
