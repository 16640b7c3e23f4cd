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
from finetune_pipeline.split.assets import data_split
from finetune_pipeline.split.assignment import assign, assign_without_overlap, units
from finetune_pipeline.split.frozen_test import frozen_file
from finetune_pipeline.split.gate import evaluate_split
from finetune_pipeline.split.leakage import overlaps, row_similarity
from finetune_pipeline.split.quotas import SPLITS
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
    """Prompts of random letters: no two are near duplicates."""
    rng = random.Random(seed)
    rows = []
    for i in range(count):
        words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(5)]
        rows.append(example(f"{seed}-{i:04}", " ".join(words), LABELS[i % 3]))
    return rows


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


def context_of(store: TaskStore, tmp_path: Path, rows: Sequence[Example], **split: float) -> StageContext:
    """The context of `data_split`: `rows` passed all stages, and each earlier stage dropped one more."""
    dropped = [example(id_, f"dropped {id_}", "refund") for id_ in ("c1", "e1")]
    raw: dict[str, Sequence[Any]] = {"examples.jsonl": [*rows, *dropped], "drops.jsonl": DROPS["raw_examples"]}
    clean: dict[str, Sequence[Any]] = {"examples.jsonl": [*rows, dropped[1]], "drops.jsonl": DROPS["clean_examples"]}
    reviewed: dict[str, Sequence[Any]] = {"examples.jsonl": rows, "drops.jsonl": DROPS["expert_review"]}
    return stage_context(
        task(answer=ANSWER, split=split),
        store,
        tmp_path,
        raw_examples=finished(store, "raw_examples", raw),
        clean_examples=finished(store, "clean_examples", clean),
        expert_review=finished(store, "expert_review", reviewed),
    )


def split_ids(context: StageContext) -> tuple[StageResult, dict[str, set[str]]]:
    """The result of `data_split`, and the row ids in each file."""
    result = data_split(context)
    return result, {name: {row["id"] for row in read_jsonl(context.out / f"{name}.jsonl")} for name in SPLITS}


def test_the_split_and_the_account_of_every_raw_row(store: TaskStore, tmp_path: Path) -> None:
    context = context_of(store, tmp_path, rows_of(300))
    result, ids = split_ids(context)
    assert {name: len(found) for name, found in ids.items()} == {"train": 231, "validation": 24, "test": 45}
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.verdict.about == context.inputs["expert_review"].content_hash
    assert result.summary["raw"] == 303
    assert result.summary["dropped_by_stage"] == {
        "ingest": {"invalid-json": 1},
        "clean": {"exact-duplicate": 1},
        "review": {"expert-rejected": 1},
    }
    outcomes = {row["id"]: row for row in read_jsonl(context.out / "outcomes.jsonl")}
    assert len(outcomes) == 303
    assert outcomes["e1"] == {
        "id": "e1", "origin": "test.csv:92", "outcome": "dropped", "stage": "review", "reason": "expert-rejected"
    }  # fmt: skip


def test_no_row_changes_its_split_when_rows_are_added(store: TaskStore, tmp_path: Path) -> None:
    _, before = split_ids(context_of(store, tmp_path, rows_of(200)))
    result, after = split_ids(context_of(store, tmp_path, [*rows_of(100, seed=2), *rows_of(200)]))
    assert before["test"] <= after["test"]
    assert not before["train"] & after["test"]
    assert len(after["test"]) == 45
    assert result.summary["frozen_test_rows"] == 30


def test_another_seed_draws_a_new_test_set_and_the_old_seed_restores_the_old_one(
    store: TaskStore, tmp_path: Path
) -> None:
    _, first = split_ids(context_of(store, tmp_path, rows_of(200)))
    _, other = split_ids(context_of(store, tmp_path, rows_of(200), seed=12))
    _, again = split_ids(context_of(store, tmp_path, rows_of(200)))
    assert first == again != other


def test_near_duplicates_are_assigned_to_the_same_split(store: TaskStore, tmp_path: Path) -> None:
    rows = rows_of(100)
    copies = [example(f"copy{row.id}", f"Hello! {row.prompt.upper()}??", row.completion) for row in rows]
    result, ids = split_ids(context_of(store, tmp_path, [*rows, *copies]))
    assert result.verdict is not None
    assert result.verdict.passed
    assert all((row.id in found) == (f"copy{row.id}" in found) for row in rows for found in ids.values())


def test_a_near_duplicate_in_training_fails_the_gate_and_is_named() -> None:
    rows = rows_of(100)
    planted = example("planted", rows[0].prompt + " now", rows[0].completion)
    splits = {"test": rows[:40], "train": [*rows[40:90], planted], "validation": rows[90:]}
    similarity = row_similarity([*rows, planted], 0.6)
    found = overlaps(splits["test"], [*splits["train"], *splits["validation"]], similarity)
    verdict = evaluate_split(found, splits, Split(), [], "hash", similarity)  # type: ignore[arg-type]
    assert not verdict.passed
    assert "1-0000 (test) and planted: near duplicate" in verdict.summary
    assert evaluate_split([], splits, Split(), [], "hash", similarity).passed  # type: ignore[arg-type]


def test_a_pair_that_hashing_misses_is_still_kept_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing misses some pairs; here it misses all. The exact check finds the pair; the rows are assigned again."""
    monkeypatch.setattr("finetune_pipeline.clean.similarity.Similarity.clusters", lambda _: [])
    fixed = 0
    for i in range(20):
        rows = rows_of(60)
        rows.append(example(f"copy{i}", rows[0].prompt + " now", rows[0].completion))
        slices = [row.completion for row in rows]
        similarity = row_similarity(rows, 0.6)
        apart = assign(rows, units(rows, []), {}, Split(), slices, similarity).split_of
        assignment, found = assign_without_overlap(rows, {}, Split(), slices, similarity)
        assert found == []
        assert (assignment.split_of[f"copy{i}"] == "test") == (assignment.split_of[rows[0].id] == "test")
        fixed += (apart[f"copy{i}"] == "test") != (apart[rows[0].id] == "test")
    assert fixed > 0, "without the exact check some pairs would be divided"


def test_few_test_rows_are_a_warning_and_pass_the_gate(store: TaskStore, tmp_path: Path) -> None:
    result, _ = split_ids(context_of(store, tmp_path, rows_of(60)))
    assert result.verdict is not None
    assert result.verdict.passed
    assert [c.name for c in result.verdict.checks if not c.passed] == ["test rows"]


def test_rows_that_a_stage_lost_are_an_error(store: TaskStore, tmp_path: Path) -> None:
    context = context_of(store, tmp_path, rows_of(100))
    lost = finished(store, "clean_examples", {"examples.jsonl": [], "drops.jsonl": []})
    with pytest.raises(DataError, match=r"1 rows have no outcome.*\(c1\)"):
        data_split(
            StageContext(
                context.task, store, {**context.inputs, "clean_examples": lost}, context.out, "key", context.now
            )
        )
    assert not frozen_file(store).exists(), "a failed split freezes no rows"


def test_rows_of_a_single_group_cannot_be_split(store: TaskStore, tmp_path: Path) -> None:
    rows = [example(row.id, row.prompt, row.completion, "all") for row in rows_of(50)]
    with pytest.raises(DataError, match="leaves validation and test empty: 50 rows and 1 declared groups"):
        data_split(context_of(store, tmp_path, rows))


def test_an_instruction_that_all_rows_share_does_not_link_them(store: TaskStore, tmp_path: Path) -> None:
    instruction = (
        "Read the message of the customer and answer with the one label that fits it best, and nothing else. " * 5
    )
    rows = [example(row.id, instruction + row.prompt, row.completion) for row in rows_of(300)]
    result, ids = split_ids(context_of(store, tmp_path, rows))
    assert {name: len(found) for name, found in ids.items()} == {"train": 231, "validation": 24, "test": 45}
    assert result.verdict is not None
    assert result.verdict.figures["ignored_grams"] > 0.5  # type: ignore[operator]


def test_rows_of_a_template_with_few_values_are_split(store: TaskStore, tmp_path: Path) -> None:
    cities = ("Paris", "Rome", "Berlin", "Madrid", "London", "Vienna", "Prague", "Lisbon", "Oslo", "Athens")
    prompts = [f"book {n} seats from {a} to {b} on {d}" for a in cities for b in cities for d in "ABC" for n in "123"]
    rows = [example(f"r{n:04}", text, LABELS[n % 3]) for n, text in enumerate(prompts)]
    result, ids = split_ids(context_of(store, tmp_path, rows))
    assert all(ids.values())
    assert 0.1 < len(ids["test"]) / len(rows) < 0.2
    assert result.verdict is not None
    assert result.verdict.passed


def test_reworded_test_rows_are_test_rows(store: TaskStore, tmp_path: Path) -> None:
    """The frozen rows are in no source any more: only their hashes are known."""
    old = rows_of(200)
    _, before = split_ids(context_of(store, tmp_path, old))
    reworded = [
        example(f"back-{row.id}", f"{row.prompt} xyz", row.completion) for row in old if row.id in before["test"]
    ]
    result, after = split_ids(context_of(store, tmp_path, [*rows_of(200, seed=2), *reworded]))
    assert {row.id for row in reworded} <= after["test"]
    assert result.summary["reworded_test_rows"] == len(reworded) == 30


def test_the_same_text_in_all_rows_is_an_error_with_the_reason(store: TaskStore, tmp_path: Path) -> None:
    rows = [example(f"r{n}", "where is it?" + "?" * n, LABELS[n % 3]) for n in range(100)]
    with pytest.raises(DataError, match=r"100 rows make only 1 units .* the largest has 100 rows"):
        data_split(context_of(store, tmp_path, rows))
