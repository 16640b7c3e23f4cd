"""The asset: its files, its verdict, its account, and the same test rows from one retraining to the next."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Split
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Drop, Example, read_jsonl
from finetune_pipeline.split.assets import data_split, evaluate_split, separate
from finetune_pipeline.split.assignment import assign, units
from finetune_pipeline.split.frozen_test import frozen_file
from finetune_pipeline.split.leakage import alike_of, overlaps
from finetune_pipeline.store import StageContext, StageResult, TaskStore
from finetune_pipeline_tests.artifacts import example, finished, stage_context, task, task_store

LABELS = ("delivery", "refund", "warranty")
ANSWER = {"format": "label", "labels": list(LABELS)}
DROPS = {
    "raw_examples": [Drop("u1", "test.csv:90", "ingest", "invalid-json")],
    "clean_examples": [Drop("c1", "test.csv:91", "clean", "exact-duplicate")],
    "expert_review": [Drop("e1", "test.csv:92", "review", "expert-rejected")],
}


def rows_of(count: int, seed: int = 1) -> list[Example]:
    """Questions of random letters: no two are near duplicates."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(5)]
        made.append(example(f"{seed}-{i:04}", " ".join(words), LABELS[i % 3]))
    return made


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


def prepared(store: TaskStore, tmp_path: Path, rows: Sequence[Example], **split: float) -> StageContext:
    """What `data_split` gets: rows that went through all stages, and three that each stage dropped."""
    gone = [example(id_, f"gone {id_}", "refund") for id_ in ("c1", "e1")]
    raw: dict[str, Sequence[Any]] = {"examples.jsonl": [*rows, *gone], "drops.jsonl": DROPS["raw_examples"]}
    clean: dict[str, Sequence[Any]] = {"examples.jsonl": [*rows, gone[1]], "drops.jsonl": DROPS["clean_examples"]}
    reviewed: dict[str, Sequence[Any]] = {"examples.jsonl": rows, "drops.jsonl": DROPS["expert_review"]}
    return stage_context(
        task(answer=ANSWER, split=split),
        store,
        tmp_path,
        raw_examples=finished(store, "raw_examples", raw),
        clean_examples=finished(store, "clean_examples", clean),
        expert_review=finished(store, "expert_review", reviewed),
    )


def made(asked: StageContext) -> tuple[StageResult, dict[str, set[str]]]:
    outcome = data_split(asked)
    assignment = ("train", "validation", "test")
    return outcome, {s: {row["id"] for row in read_jsonl(asked.out / f"{s}.jsonl")} for s in assignment}


def test_the_split_and_the_account_of_every_raw_row(store: TaskStore, tmp_path: Path) -> None:
    asked = prepared(store, tmp_path, rows_of(300))
    outcome, ids = made(asked)
    assert {name: len(found) for name, found in ids.items()} == {"train": 231, "validation": 24, "test": 45}
    assert outcome.verdict is not None
    assert outcome.verdict.passed
    assert outcome.verdict.about == asked.inputs["expert_review"].content_hash
    assert outcome.summary["raw"] == 303
    assert outcome.summary["dropped_by_stage"] == {
        "ingest": {"invalid-json": 1},
        "clean": {"exact-duplicate": 1},
        "review": {"expert-rejected": 1},
    }
    fates = {row["id"]: row for row in read_jsonl(asked.out / "outcomes.jsonl")}
    assert len(fates) == 303
    assert fates["e1"] == {
        "id": "e1", "origin": "test.csv:92", "outcome": "dropped", "stage": "review", "reason": "expert-rejected"
    }  # fmt: skip


def test_no_row_changes_sides_when_rows_are_added(store: TaskStore, tmp_path: Path) -> None:
    _, before = made(prepared(store, tmp_path, rows_of(200)))
    outcome, after = made(prepared(store, tmp_path, [*rows_of(100, seed=2), *rows_of(200)]))
    assert before["test"] <= after["test"]
    assert not before["train"] & after["test"]
    assert len(after["test"]) == 45
    assert outcome.summary["frozen_test_rows"] == 30


def test_another_seed_draws_a_new_test_set_and_the_old_seed_finds_the_old_one(store: TaskStore, tmp_path: Path) -> None:
    _, first = made(prepared(store, tmp_path, rows_of(200)))
    _, other = made(prepared(store, tmp_path, rows_of(200), seed=12))
    _, again = made(prepared(store, tmp_path, rows_of(200)))
    assert first == again != other


def test_near_duplicates_fall_on_the_same_side(store: TaskStore, tmp_path: Path) -> None:
    rows = rows_of(100)
    copies = [example(f"copy{row.id}", f"Hello! {row.prompt.upper()}??", row.completion) for row in rows]
    outcome, ids = made(prepared(store, tmp_path, [*rows, *copies]))
    assert outcome.verdict is not None
    assert outcome.verdict.passed
    assert all((row.id in found) == (f"copy{row.id}" in found) for row in rows for found in ids.values())


def test_a_planted_near_duplicate_fails_the_check_and_is_named() -> None:
    rows = rows_of(100)
    planted = example("planted", rows[0].prompt + " now", rows[0].completion)
    parts = {"test": rows[:40], "train": [*rows[40:90], planted], "validation": rows[90:]}
    alike = alike_of([*rows, planted], 0.6)
    found = overlaps(parts["test"], [*parts["train"], *parts["validation"]], alike)
    verdict = evaluate_split(found, parts, Split(), [], "hash", alike)  # type: ignore[arg-type]
    assert not verdict.passed
    assert "1-0000 (test) and planted: near duplicate" in verdict.summary
    assert evaluate_split([], parts, Split(), [], "hash", alike).passed  # type: ignore[arg-type]


def test_a_pair_that_the_finder_misses_is_still_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing misses a pair now and then; here it misses all. The exact check finds the pair and it is fixed."""
    monkeypatch.setattr("finetune_pipeline.clean.similarity.Similarity.clusters", lambda _: [])
    fixed = 0
    for i in range(20):
        rows = rows_of(60)
        rows.append(example(f"copy{i}", rows[0].prompt + " now", rows[0].completion))
        slices = [row.completion for row in rows]
        alike = alike_of(rows, 0.6)
        apart = assign(rows, units(rows, []), {}, Split(), slices, alike).split_of
        assignment, found = separate(rows, {}, Split(), slices, alike)
        assert found == []
        assert (assignment.split_of[f"copy{i}"] == "test") == (assignment.split_of[rows[0].id] == "test")
        fixed += (apart[f"copy{i}"] == "test") != (apart[rows[0].id] == "test")
    assert fixed > 0, "otherwise this test shows nothing"


def test_what_the_test_cannot_show_is_a_warning_not_a_refusal(store: TaskStore, tmp_path: Path) -> None:
    outcome, _ = made(prepared(store, tmp_path, rows_of(60)))
    assert outcome.verdict is not None
    assert outcome.verdict.passed
    assert [c.name for c in outcome.verdict.checks if not c.passed] == ["test rows"]


def test_rows_that_a_stage_lost_stop_the_split(store: TaskStore, tmp_path: Path) -> None:
    asked = prepared(store, tmp_path, rows_of(100))
    lost = finished(store, "clean_examples", {"examples.jsonl": [], "drops.jsonl": []})
    with pytest.raises(DataError, match=r"1 have no fate.*\(c1\)"):
        data_split(
            StageContext(asked.task, store, {**asked.inputs, "clean_examples": lost}, asked.out, "key", asked.now)
        )
    assert not frozen_file(store).exists(), "a split that failed decides nothing for later ones"


def test_one_group_of_everything_cannot_be_split(store: TaskStore, tmp_path: Path) -> None:
    rows = [example(row.id, row.prompt, row.completion, "all") for row in rows_of(50)]
    with pytest.raises(DataError, match="leaves validation and test empty: 50 rows and 1 declared groups"):
        data_split(prepared(store, tmp_path, rows))


def test_an_instruction_of_every_row_leaves_all_sides_filled(store: TaskStore, tmp_path: Path) -> None:
    told = "Read the message of the customer and answer with the one label that fits it best, and nothing else. " * 5
    rows = [example(row.id, told + row.prompt, row.completion) for row in rows_of(300)]
    outcome, ids = made(prepared(store, tmp_path, rows))
    assert {name: len(found) for name, found in ids.items()} == {"train": 231, "validation": 24, "test": 45}
    assert outcome.verdict is not None
    assert outcome.verdict.figures["ignored_grams"] > 0.5  # type: ignore[operator]


def test_a_template_with_few_values_is_split_and_the_report_says_how(store: TaskStore, tmp_path: Path) -> None:
    cities = ("Paris", "Rome", "Berlin", "Madrid", "London", "Vienna", "Prague", "Lisbon", "Oslo", "Athens")
    asked = [f"book {n} seats from {a} to {b} on {d}" for a in cities for b in cities for d in "ABC" for n in "123"]
    rows = [example(f"r{n:04}", text, LABELS[n % 3]) for n, text in enumerate(asked)]
    outcome, ids = made(prepared(store, tmp_path, rows))
    assert all(ids.values())
    assert 0.1 < len(ids["test"]) / len(rows) < 0.2
    assert outcome.verdict is not None
    assert outcome.verdict.passed


def test_reworded_test_rows_that_come_back_are_test_rows(store: TaskStore, tmp_path: Path) -> None:
    """The frozen rows themselves are in no source any more: only their hashes are left."""
    old = rows_of(200)
    _, before = made(prepared(store, tmp_path, old))
    back = [example(f"back-{row.id}", f"{row.prompt} xyz", row.completion) for row in old if row.id in before["test"]]
    outcome, after = made(prepared(store, tmp_path, [*rows_of(200, seed=2), *back]))
    assert {row.id for row in back} <= after["test"]
    assert outcome.summary["reworded_test_rows"] == len(back) == 30


def test_one_text_in_every_row_is_refused_with_the_reason(store: TaskStore, tmp_path: Path) -> None:
    rows = [example(f"r{n}", "where is it?" + "?" * n, LABELS[n % 3]) for n in range(100)]
    with pytest.raises(DataError, match=r"100 rows make only 1 units .* the largest holds 100 rows"):
        data_split(prepared(store, tmp_path, rows))
