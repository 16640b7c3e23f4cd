"""A file of preferences on its whole way to the training: ingest, cleaning, quality gate, review with edits, split.

The rows are conversations of two turns in the form of HH-RLHF. Great Expectations and the store are real; only the
report on suitability, which measures the machine, is made by hand.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_pipeline.materialize import materialize, open_task
from finetune_pipeline.records import Example, Review, Verdict, read_jsonl
from finetune_pipeline.review import verdict_store
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import finished

ROWS = 60
WORDS = ("paint", "wall", "door", "boat", "fence", "chair", "table", "roof", "shed", "gate", "bench", "lamp", "shelf")


def said(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=8))


def pair(start: str, chosen: str, rejected: str) -> dict[str, str]:
    return {key: f"{start}\n\nAssistant: {answer}" for key, answer in (("chosen", chosen), ("rejected", rejected))}


def raw_rows() -> list[dict[str, str]]:
    rng = random.Random(3)
    starts = [f"\n\nHuman: {said(rng)}?\n\nAssistant: {said(rng)}.\n\nHuman: {said(rng)}?" for _ in range(ROWS)]
    rows = [pair(start, f"Kind {said(rng)}.", f"Rude {said(rng)}.") for start in starts]
    rows[0] = pair(starts[0], "Kind answer.", "Ask jo@example.com or go away.")
    rows[1] = pair(starts[1], "Kind answer two.", "Kind answer two. ")
    return [
        *rows,
        pair(starts[2], "Turned around.", "Kind."),
        pair(starts[2], "Kind.", "Turned around."),
        pair("\n\nHuman: hi\n\nAssistant: one\n\nAssistant: two\n\nHuman: ho", "a", "b"),
    ]


@pytest.fixture
def store(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "data" / "manners"
    (folder / "raw").mkdir(parents=True)
    (folder / "raw" / "pairs.jsonl").write_text("\n".join(map(json.dumps, raw_rows())), "utf-8")
    declared = {
        "name": "manners",
        "sources": [{"path": "raw/pairs.jsonl"}],
        "base": {"path": str(tiny_model), "license": "apache-2.0"},
        "quality": {"min_rows": 20},
        "review": {"min_rows": 20, "min_approved": 0.5},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(declared), "utf-8")
    return open_task("manners")[1]


def make(store: TaskStore, asset: str) -> Any:
    return materialize(asset, open_task("manners")[0], store)


def by_origin(rows: Any) -> Mapping[str, Example]:
    return {row.origin: row for row in rows}


def test_preferences_reach_the_training_rows_with_what_the_experts_prefer(store: TaskStore) -> None:
    make(store, "base_model")
    raw, clean = make(store, "raw_examples"), make(store, "clean_examples")
    assert raw.summary["pairs"] == ROWS + 2
    assert [drop["reason"] for drop in read_jsonl(raw.path("drops.jsonl"))] == ["wrong-layout"]
    assert [drop["reason"] for drop in read_jsonl(clean.path("drops.jsonl"))] == ["contradiction", "contradiction"]
    rows = by_origin(clean.examples())
    assert rows["pairs.jsonl:1"].rejected == "Ask <EMAIL> or go away."
    assert rows["pairs.jsonl:2"].rejected is None  # it was the chosen one
    assert clean.summary["pairs"] == ROWS - 1
    assert all([m.role for m in row.messages] == ["user", "assistant", "user", "assistant"] for row in rows.values())

    finished(
        store, "suitability_report", {"report.md": {}}, Verdict("suitability_report", True, clean.content_hash, "")
    )
    assert make(store, "data_quality").verdict.passed
    sample = list(make(store, "review_sample").examples("sample.jsonl"))
    turned, plain = [row for row in sample if row.rejected][:2]
    edited = rows["pairs.jsonl:2"]  # the only one without a rejected answer, perhaps not in the sample
    review(store, [*sample, edited], {turned.id: str(turned.rejected), edited.id: "A kinder answer."})
    reviewed = by_origin(make(store, "expert_review").examples())
    assert reviewed[turned.origin].completion == turned.rejected
    assert reviewed[turned.origin].rejected == turned.completion
    assert (reviewed[plain.origin].completion, reviewed[plain.origin].rejected) == (plain.completion, plain.rejected)

    split = make(store, "data_split")
    assert split.verdict.passed
    assert split.summary["raw"] == ROWS + 3
    final = by_origin(row for name in ("train", "validation", "test") for row in split.examples(f"{name}.jsonl"))
    assert final == reviewed
    assert final[edited.origin].rejected == "Kind answer two."


def review(store: TaskStore, rows: list[Example], edits: Mapping[str, str]) -> None:
    """Approve every row but those with an edit."""
    for row in rows:
        completion = edits.get(row.id)
        decision: Any = "approve" if completion is None else "edit"
        now = "2026-01-05T10:00:00+00:00"
        verdict_store.save(store, Review(row.id, row.content_hash, "anna", decision, now, completion))
