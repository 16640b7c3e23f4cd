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
from finetune_pipeline.serve import desired
from finetune_pipeline.serve.desired import Desired, Version
from finetune_pipeline_tests.artifacts import task_store


def version(number: int) -> Version:
    hashes: Any = {name: f"{name}-{number}" for name in ("adapter", "adapter_key", "registered", "evaluation")}
    return Version(
        version=number, base="base", served_as="parcels", max_new_tokens=32, on_invalid="pass", log_text=True,
        at=f"2026-01-0{number}", **hashes,
    )  # fmt: skip


def after(*numbers: int) -> Desired:
    state = Desired()
    for number in numbers:
        state = desired.promote(state, version(number), state.champion)
    return state


def test_the_champion_before_is_the_one_to_fall_back_on() -> None:
    state = after(1, 2, 3)
    assert state.champion == version(3)
    assert [v.version for v in state.previous] == [2, 1]
    assert [(m.what, m.before, m.after) for m in state.history][-1] == ("promote", "registered-2", "registered-3")


def test_a_challenger_takes_nothing_from_the_champion() -> None:
    state = desired.challenge(after(1), version(2))
    assert state.champion == version(1) and state.challenger == version(2)
    assert desired.withdraw(state, version(2)) == after(1)
    assert desired.withdraw(state, version(3)) == state


def test_rollback_goes_back_one_by_one_and_holds_what_was_left() -> None:
    once = desired.back(after(1, 2, 3), "2026-02-01", "wrong prices")
    assert once.champion == replace(version(2), at="2026-02-01")
    assert once.held["adapter-3"].endswith("2026-02-01: wrong prices")
    twice = desired.back(once, "2026-02-02", "")
    assert twice.champion is not None and twice.champion.version == 1 and set(twice.held) == {"adapter-3", "adapter-2"}
    with pytest.raises(GateRefused, match="no earlier version"):
        desired.back(twice, "2026-02-03", "")


def test_what_is_held_is_not_deployed_until_somebody_says_so() -> None:
    state = desired.back(after(1, 2), "2026-02-01", "")
    with pytest.raises(GateRefused, match="version 2 was rolled back"):
        desired.challenge(state, version(2))
    with pytest.raises(GateRefused, match="version 2 was rolled back"):
        desired.promote(state, version(2), state.champion)
    lifted = desired.lift(state, "adapter-2", 2, "registered-2", "2026-02-02", "it was the shop's fault")
    assert desired.promote(lifted, version(2), lifted.champion).champion == version(2)


def test_a_deployment_leaves_its_own_key_as_it_was_and_what_undoes_it_changes_it() -> None:
    moves = [desired.moves_of(state, "registered-2") for state in (after(1), after(1, 2))]
    assert moves == [0, 0]
    rolled = desired.back(after(1, 2), "2026-02-01", "")
    lifted = desired.lift(rolled, "adapter-2", 2, "registered-2", "2026-02-02", "")
    again = desired.promote(lifted, version(2), lifted.champion)
    assert [desired.moves_of(state, "registered-2") for state in (rolled, lifted, again)] == [1, 2, 2]
    assert (
        desired.moves_of(after(1, 2, 3), "registered-2") == 1
    )  # an older model that becomes current again is deployed


def test_other_settings_of_the_same_model_are_no_change_of_model() -> None:
    state = desired.promote(after(1, 2), replace(version(2), on_invalid="reject", at="2026-03-01"), version(2))
    assert [v.version for v in state.previous] == [1]
    assert state.history[-1].what == "settings" and desired.moves_of(state, "registered-2") == 0


def test_the_file_says_what_the_state_is(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    assert desired.read(store) == Desired()
    state = desired.back(desired.challenge(after(1, 2), version(3)), "2026-02-01", "why")
    desired.change(store, lambda _: state)
    assert desired.read(store) == state


def test_a_damaged_file_is_named(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    desired.change(store, lambda _: after(1))
    path = tmp_path / "data" / "parcels" / "9_traffic" / "desired.json"
    for text in (
        b"{",
        b"{}",
        b"[]",
        b"\xff",
        b'{"champion": null, "challenger": null, "held": [1], "history": [], "previous": []}',
    ):
        path.write_bytes(text)
        with pytest.raises(StorageError, match=r"desired\.json is damaged"):
            desired.read(store)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=r"desired\.json cannot be read: Is a directory"):
        desired.read(store)


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    threads = [
        threading.Thread(target=lambda n=n: desired.change(store, lambda s: desired.promote(s, version(n), s.champion)))
        for n in range(1, 9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {m.version for m in desired.read(store).history} == set(range(1, 9))


def test_a_deployment_takes_back_its_own_move_and_nothing_else() -> None:
    before = desired.challenge(after(1, 2), version(3))
    moved = desired.promote(before, version(3), version(2))
    undone = desired.undo(moved, version(3), before)
    assert undone == after(1, 2)
    rolled = desired.back(moved, "2026-02-01", "wrong prices")
    assert desired.undo(rolled, version(3), before) == rolled and rolled.held
    lifted = desired.lift(replace(moved, held={"other": "x"}), "other", 9, "registered-9", "2026-02-01", "")
    assert desired.undo(lifted, version(3), before).held == {}
    settings = replace(version(2), on_invalid="reject")
    assert desired.undo(desired.promote(after(1, 2), settings, version(2)), settings, after(1, 2)) == after(1, 2)


def test_a_deployment_does_not_override_a_rollback_in_the_meantime() -> None:
    began = desired.challenge(after(1, 2), version(3))
    rolled = desired.back(began, "2026-02-01", "wrong prices")
    with pytest.raises(GateRefused, match="meanwhile the champion became version 1"):
        desired.promote(rolled, version(3), began.champion)


def test_fields_of_a_newer_release_are_kept(tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    store = task_store(tmp_path, monkeypatch)
    desired.change(store, lambda _: desired.challenge(after(1, 2), version(3)))
    path = tmp_path / "data" / "parcels" / "9_traffic" / "desired.json"
    raw = json.loads(path.read_text())
    raw["weights"] = {"canary": 0.1}
    raw["champion"]["engine"], raw["challenger"]["engine"] = "vllm", ["llama.cpp"]
    raw["previous"][0]["engine"], raw["history"][0]["who"] = None, "anna"
    path.write_text(json.dumps(raw))
    assert desired.read(store).champion.version == 2  # type: ignore[union-attr]
    desired.change(store, lambda s: desired.back(s, "2026-02-01", "why"))
    now = json.loads(path.read_text())
    assert now["weights"] == {"canary": 0.1} and now["history"][0]["who"] == "anna"
    assert now["champion"]["version"] == 1 and now["champion"]["engine"] is None
    desired.change(store, lambda s: desired.promote(s, version(3), s.champion))
    again = json.loads(path.read_text())
    assert again["previous"][0]["engine"] is None and "unknown" not in json.dumps(again)


def test_the_opponent_is_what_is_live_and_stays_so_when_the_candidate_is_deployed() -> None:
    def opponent(state: Desired, number: int) -> int | None:
        found = desired.opponent(state, f"adapter-{number}")
        return found.version if found else None

    assert opponent(Desired(), 1) is None
    assert opponent(after(1), 1) is None  # the first one, after its own deployment
    assert [opponent(after(1), 2), opponent(after(1, 2), 2)] == [1, 1]
    assert opponent(desired.back(after(1, 2), "2026-02-01", ""), 2) == 1  # and after it was rolled back
    assert opponent(after(1, 2), 3) == 2
    again = replace(version(2), registered="registered-2b", version=5)  # the same adapter under another description
    assert opponent(desired.promote(after(1, 2), again, version(2)), 2) == 1
    assert [opponent(after(1, 2), 1), opponent(after(1, 2, 1), 1)] == [2, 2]  # an older candidate comes back
