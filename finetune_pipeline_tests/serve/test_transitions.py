"""Transitions of the deployment state: promotion, rollback, holds, and the live version."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_pipeline.errors import GateRefused
from finetune_pipeline.serve import transitions
from finetune_pipeline.serve.deployment_state import DeploymentState
from finetune_pipeline_tests.serve.versions import promoted, version


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
