"""The study survives its process: what was tried is known, and the next proposals are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_pipeline.config import Search
from finetune_pipeline.train.search.spec import TrialRecord
from finetune_pipeline.train.search.study import MIN_FOR_IMPORTANCE, Study

SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "batch_size": {"low": 2, "high": 32}}


def search(trials: int = 12, parameters: Any = None, **settings: Any) -> Search:
    return Search.model_validate({"trials": trials, "parameters": parameters or SPACE, **settings})


def record(number: int, values: Any, **changed: Any) -> TrialRecord:
    loss = abs(values.get("learning_rate", 0.0) - 2e-3) + 0.01 * values.get("batch_size", 0)
    plain = {"number": number, "state": "complete", "values": values, "loss": loss, "seconds": 1.0}
    return TrialRecord(**{**plain, **changed})


def run(study: Study, most: int = 100) -> list[Any]:
    found: list[Any] = []
    while len(found) < most and (asked := study.ask()) is not None:
        trial, values = asked
        study.tell(trial, record(len(study.records) + 1, values))
        found.append(values)
    return found


def test_a_resumed_search_proposes_what_an_uninterrupted_one_proposes(tmp_path: Path) -> None:
    whole = run(Study(tmp_path / "whole.jsonl", search(), 13))
    assert len(whole) == 12 and whole != run(Study(tmp_path / "other.jsonl", search(), 14))
    first = run(Study(tmp_path / "parts.jsonl", search(), 13), most=5)
    again = Study(tmp_path / "parts.jsonl", search(), 13)
    assert [(each.number, each.values) for each in again.records] == list(enumerate(first, 1))
    assert first + run(again) == whole
    assert Study(tmp_path / "parts.jsonl", search(), 13).ask() is None


def test_later_proposals_are_better_than_the_first_ones(tmp_path: Path) -> None:
    study = Study(tmp_path / "trials.jsonl", search(25), 13)
    run(study)
    losses = [each.loss or 0.0 for each in study.records]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])
    importance = study.importance()
    assert sum(importance.values()) > 0.99 and list(importance) == ["batch_size", "learning_rate"]


def test_a_trial_of_a_killed_run_is_begun_again_once_and_then_has_failed(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    run(Study(path, search(), 13), most=2)
    values = []
    for interruption in range(3):
        study = Study(path, search(), 13)  # the process of the one before was killed within its trial
        assert study.interruptions == interruption
        asked = study.ask()
        assert asked is not None and len(study.records) == 2 + (interruption == 2)
        values.append(asked[1])
    assert values[0] == values[1] != values[2]
    study = Study(path, search(), 13)
    assert study.interruptions == 3
    failed = study.records[-1]
    assert (failed.number, failed.state, failed.values) == (3, "failed", values[0]) and "ended twice" in failed.reason
    assert len(run(study)) == 9, "of the interrupted trials, only the failed one counts"


def test_a_combination_that_kills_every_process_does_not_keep_the_others_from_being_tried(tmp_path: Path) -> None:
    """Every run is a process, which the second batch size ends: with too little memory, for example."""
    planned = search(parameters={"batch_size": [8, 64, 16], "without_sources": [[], ["web"]]})
    runs = 0
    while runs < 12:
        study = Study(tmp_path / "trials.jsonl", planned, 13)
        runs += 1
        while (asked := study.ask()) is not None and asked[1]["batch_size"] != 64:
            study.tell(asked[0], record(len(study.records) + 1, asked[1]))
        if asked is None:
            break
    found = study.records
    assert runs == 5 and [each.number for each in found] == [1, 2, 3, 4, 5, 6]
    failed = [each for each in found if each.state == "failed"]
    assert [each.values for each in failed] == [
        {"batch_size": 64, "without_sources": []},
        {"batch_size": 64, "without_sources": ["web"]},
    ]
    assert {each.values["batch_size"] for each in found if each.state == "complete"} == {8, 16}


def test_the_trial_of_a_canceled_run_is_begun_again_as_often_as_that_happens(tmp_path: Path) -> None:
    path, planned = tmp_path / "trials.jsonl", search(3, {"batch_size": [8, 64, 16]})
    tried = []
    for _ in range(4):
        study = Study(path, planned, 13)
        asked = study.ask()
        assert asked is not None
        study.put_back(asked[0])
        tried.append(asked[1]["batch_size"])
    assert tried == [8, 64, 16, 8]
    study = Study(path, planned, 13)
    assert study.interruptions == 4 and not study.records
    study.ask()  # and this process is killed
    study = Study(path, planned, 13)
    assert sorted(values["batch_size"] for values in run(study)) == [8, 16, 64]


def test_a_journal_that_was_cut_off_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    done = run(Study(path, search(), 13), most=3)
    with path.open("ab") as file:
        file.write(b'{"op_code":5,"worker_id":"a')
    path.with_name("trials.jsonl.lock").symlink_to(path)  # as Optuna leaves it when it is killed while it writes
    study = Study(path, search(), 13)
    assert [each.values for each in study.records] == done
    assert len(run(study)) == 9
    assert len(Study(path, search(), 13).records) == 12


def test_a_small_space_is_tried_completely_and_nothing_twice(tmp_path: Path) -> None:
    lists = {"batch_size": [2, 4], "layers": [None, 1]}
    study = Study(tmp_path / "a.jsonl", search(100, lists), 13)
    found = run(study)
    assert study.trials == 4 == len(found) and all(found.count(values) == 1 for values in found)
    few = Study(tmp_path / "b.jsonl", search(3, {"batch_size": [2, 4, 8, 16]}), 13, first={"batch_size": 8})
    tried = run(few)
    assert tried[0] == {"batch_size": 8} and len({each["batch_size"] for each in tried}) == 3


def test_failed_and_pruned_trials_are_kept_and_count(tmp_path: Path) -> None:
    study = Study(tmp_path / "trials.jsonl", search(3), 13)
    for number, state in enumerate(("failed", "pruned", "complete"), 1):
        asked = study.ask()
        assert asked is not None
        asked[0].report(1.0, 1)
        study.tell(asked[0], record(number, asked[1], state=state))
    states = [each.state for each in Study(tmp_path / "trials.jsonl", search(3), 13).records]
    assert states == ["failed", "pruned", "complete"] and study.ask() is None
    assert study.importance() == {} and MIN_FOR_IMPORTANCE > 1


def test_the_score_is_maximized(tmp_path: Path) -> None:
    study = Study(tmp_path / "trials.jsonl", search(24, metric="score"), 13)
    while (asked := study.ask()) is not None:
        trial, values = asked
        study.tell(trial, record(len(study.records) + 1, values, score=values["batch_size"] / 32, loss=1.0))
    sizes = [each.values["batch_size"] for each in study.records]
    assert sum(sizes[-8:]) / 8 > 22 > sum(sizes[:8]) / 8
