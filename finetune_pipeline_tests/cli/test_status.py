"""`finetune status`: rows, the difference to the best prompt, and what moved the traffic last."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from finetune_pipeline.cli.status import _difference, _rows, _search, summary
from finetune_pipeline.records import Artifact
from finetune_pipeline.serve import deployment_state, transitions
from finetune_pipeline.store import gate_hint
from finetune_pipeline_tests.desk import sample_tasks
from finetune_pipeline_tests.serve.versions import promoted, version


def decision(folder: Path, gain: object) -> Artifact:
    (folder / "decision.json").write_text(json.dumps({"figures": {"gain": gain}}), "utf-8")
    return Artifact("release_decision", "k", "c", folder, {})


def test_the_reasons_of_all_stages_are_summed(tmp_path: Path) -> None:
    dropped = {"clean": {"near-duplicate": 3}, "review": {"expert-rejected": 1, "near-duplicate": 2}}
    accounting = {"raw": 26, "splits": {"train": 14, "validation": 2, "test": 4}, "dropped": dropped}
    (tmp_path / "accounting.json").write_text(json.dumps(accounting), "utf-8")
    split = Artifact("data_split", "k", "c", tmp_path, {})
    rows = _rows({"data_split": split}, split)
    assert rows.startswith("26 rows read, 20 kept (14 train, 2 validation, 4 test), 6 dropped: 5 near-duplicate,")


def test_the_best_trial_and_their_number_are_shown(tmp_path: Path) -> None:
    found = {"best_trial": 7, "trials": 20, "metric": "loss", "pruned": 5, "failed": 1}
    summary = {**found, "best_values": {"learning_rate": "0.0021", "layers": "all"}}
    text = _search(Artifact("training_search", "key", "4be0", tmp_path, {"summary": summary}))
    assert text.startswith(
        "trial 7 of 20 is the best by validation loss: learning_rate 0.0021, layers all (5 ended early"
    )
    off = Artifact("training_search", "key", "4be0", tmp_path, {"summary": {"search": "not declared"}})
    assert _search(off) == "not made for the declared search yet"


def test_the_difference_to_the_best_prompt_is_shown(tmp_path: Path) -> None:
    gain = {"over": "few_shot", "difference": 0.1, "interval": [0.02, 0.18]}
    assert "+10.0 points (95 % interval +2.0 to +18.0)" in _difference(decision(tmp_path, gain))


def test_a_decision_without_a_prompted_baseline_has_no_difference(tmp_path: Path) -> None:
    assert _difference(decision(tmp_path, None)) == ""


def test_the_last_move_of_the_traffic_is_shown_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    _, store = sample_tasks.make("parcels", until="clean_examples")

    def shown() -> str:
        console = Console(width=200)
        with console.capture() as captured:
            console.print(summary("parcels"))
        return captured.get()

    assert "traffic  " not in shown()
    once = promoted(1)
    rolled = transitions.roll_back(promoted(1, 2), "2026-02-01T10:00:00+00:00", "wrong prices")
    unheld = transitions.remove_hold(rolled, "adapter-2", 2, "registered-2", "2026-02-02T10:00:00+00:00", "")
    settings = transitions.promote(once, replace(version(1), on_invalid="reject"), version(1))
    for state, text in (
        (once, "promote to version 1, 1 Jan 2026"),
        (promoted(1, 2), "promote from version 1 to version 2, 2 Jan 2026"),
        (rolled, "rollback from version 2 to version 1, 1 Feb 2026, 10:00 UTC: wrong prices"),
        (unheld, "unhold of version 2, 2 Feb 2026, 10:00 UTC"),
        (settings, "settings of version 1, 1 Jan 2026"),
    ):
        deployment_state.update(store, lambda _, state=state: state)  # type: ignore[misc]
        assert f"traffic  {text}" in shown()


def test_the_hint_of_the_training_gate_names_a_place_that_lists_its_checks() -> None:
    assert "desk" in gate_hint("adapter") and "finetune status" not in gate_hint("adapter")
