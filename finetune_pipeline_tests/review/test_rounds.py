"""The gate over several rounds, with the real assets and store."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from finetune_pipeline.materialize import materialize
from finetune_pipeline.records import Artifact, read_jsonl
from finetune_pipeline.review import history, verdict_store
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished, task
from finetune_pipeline_tests.review.verdicts import ROWS, cleaned, passed, reviewed, verdict


def test_fixing_only_the_rejected_rows_does_not_make_the_data_pass(store: TaskStore, clean: Artifact) -> None:
    """80 % of the rows are right. Only the rejected rows are fixed, and the review runs again. When approved
    rows stayed in the sample, it was better than the data after one to three rounds."""
    rng = random.Random(7)
    rows = [example(f"r{i:03}", f"prompt {i}", f"completion {i}") for i in range(600)]
    bad = {row.id for row in rng.sample(rows, 120)}
    declared = task()
    seen: set[str] = set()
    for number in range(1, 6):
        cleaned(store, rows)
        gate = reviewed(store, declared, bad)
        assert not passed(gate), gate.verdict
        drawn = {row.id for row in store.current("review_sample").examples("sample.jsonl")}  # type: ignore[union-attr]
        assert not drawn & seen
        assert gate.verdict is not None and gate.verdict.summary.startswith(f"round {number}: ")
        seen |= drawn
        rejected = bad & drawn
        bad -= rejected
        rows = [replace(row, id=f"{row.id}+") if row.id in rejected else row for row in rows]


def test_good_data_passes_in_the_next_round(store: TaskStore, clean: Artifact) -> None:
    rows = [example(f"r{i:03}", f"prompt {i}", f"completion {i}") for i in range(300)]
    cleaned(store, rows)
    assert not passed(reviewed(store, task(), {row.id for row in rows[:100]}))
    assert not passed(reviewed(store, task(), {row.id for row in rows[:100]})), "the same data fails again"
    cleaned(store, [replace(row, id=f"{row.id}+") if row in rows[:100] else row for row in rows])
    again = reviewed(store, task())
    assert passed(again)
    assert again.summary["round"] == 2
    kept = {row.id for row in again.examples()}
    assert len(kept) == 300, "nothing is dropped: the rejected rows have other content now"


def test_a_row_rejected_in_an_earlier_round_is_still_dropped(store: TaskStore, clean: Artifact) -> None:
    rows = [example(f"r{i:03}", f"prompt {i}", f"completion {i}") for i in range(300)]
    cleaned(store, rows)
    first = reviewed(store, task(), {row.id for row in rows[:100]})
    rejected = {drop["id"] for drop in read_jsonl(first.path("drops.jsonl"))}
    assert rejected
    cleaned(store, [*rows, example("new", "new", "new")])
    second = reviewed(store, task())
    assert passed(second)
    assert {drop["id"] for drop in read_jsonl(second.path("drops.jsonl"))} == rejected


def test_rounds_are_stored_with_the_verdicts_and_survive_deleted_artifacts(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    assert not passed(reviewed(store, declared, {row.id for row in ROWS}))
    written = sorted(path.name for path in Path(str(history.rounds_folder(store))).iterdir())
    assert written == ["1.decided.json", "1.json"]
    assert history.rounds_folder(store).parent == store.root / "review" == verdict_store.verdicts_folder(store).parent
    artifacts = list(Path(str(store.root)).glob("[0-9][0-9]_*"))
    assert artifacts
    for folder in artifacts:
        shutil.rmtree(folder)
    finished(store, "base_model", {"base_model.json": {}})
    cleaned(store, ROWS[1:])
    again = materialize("review_sample", declared, store)
    assert again.summary["round"] == 2


def test_rows_fixed_while_recorded_verdicts_are_incomplete_count_as_wrong(store: TaskStore, clean: Artifact) -> None:
    """Nothing is stored in the task's folder for recorded verdicts, and yet the round continues."""
    declared = task(review={"recorded": "review/verdicts.jsonl"})
    drawn = list(materialize("review_sample", declared, store).examples("sample.jsonl"))
    store.review_folder.mkdir()
    recorded = [verdict(row, "reject" if row == drawn[0] else "approve") for row in drawn[:15]]
    (store.review_folder / "verdicts.jsonl").write_text(
        "".join(json.dumps(asdict(review)) + "\n" for review in recorded)
    )
    cleaned(store, [row for row in ROWS if row != drawn[0]])
    again = materialize("review_sample", declared, store)
    assert again.summary["gone"] == 1
    assert list(again.examples("sample.jsonl")) == drawn[1:]
    assert [path.name for path in store.review_folder.iterdir()] == ["verdicts.jsonl"]


def test_verdicts_changed_after_the_gate_failed_count_and_are_a_warning(store: TaskStore, clean: Artifact) -> None:
    declared = task()
    failed = reviewed(store, declared, {row.id for row in ROWS})
    assert not passed(failed)
    sample = store.current("review_sample")
    assert sample is not None
    for row in sample.examples("sample.jsonl"):
        verdict_store.save(store, replace(verdict(row), at="2999-01-01T00:00:00+00:00"))
    corrected = materialize("expert_review", declared, store)
    assert passed(corrected)
    assert corrected.verdict is not None
    warnings = [check.observed for check in corrected.verdict.checks if not check.passed]
    assert "20 of 20 verdicts are later" in warnings
