"""Verdicts, rows and reviewed artifacts for the tests of the review.

verdict(row), verdict(row, "reject"), verdict(row, "edit", "bob", completion="better")
"""

from __future__ import annotations

from collections.abc import Container

from finetune_pipeline.config import Task
from finetune_pipeline.materialize import materialize
from finetune_pipeline.records import Artifact, Example, Review, Verdict
from finetune_pipeline.review import verdict_store
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import example, finished

ROWS = [example(f"r{i:03}", f"prompt {i}", f"completion {i}") for i in range(40)]


def verdict(row: Example, decision: str = "approve", reviewer: str = "anna", completion: str | None = None) -> Review:
    """The verdict of a reviewer on the row's current content."""
    return Review(row.id, row.content_hash, reviewer, decision, "2026-01-05T10:00:00+00:00", completion)  # type: ignore[arg-type]


def cleaned(store: TaskStore, rows: list[Example]) -> Artifact:
    """Commit clean_examples with these rows, and a data_quality that passed."""
    artifact = finished(store, "clean_examples", {"examples.jsonl": rows})
    finished(store, "data_quality", {"rows.jsonl": []}, Verdict("data_quality", True, artifact.content_hash, "passed"))
    return artifact


def reviewed(store: TaskStore, declared: Task, wrong: Container[str] = ()) -> Artifact:
    """Save every missing verdict (reject for the ids in `wrong`), and make expert_review."""
    sample = materialize("review_sample", declared, store)
    known = {review.id for review in verdict_store.load(store, declared, sample)}
    for row in sample.examples("sample.jsonl"):
        if row.id not in known:
            verdict_store.save(store, verdict(row, "reject" if row.id in wrong else "approve"))
    return materialize("expert_review", declared, store)


def passed(artifact: Artifact) -> bool:
    """Whether the artifact's gate passed."""
    assert artifact.verdict is not None
    return artifact.verdict.passed
