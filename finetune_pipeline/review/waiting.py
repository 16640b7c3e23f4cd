"""Stop a run until every row of the current sample has its verdicts.

    require_review_complete(task, store)
    WaitingForPeople: support_tickets waits for its experts: 12 of 70 rows reviewed

Used by the asset `expert_review`, `finetune run` and `finetune status`; in Dagster, the sensor `review_finished` starts
the next run.
"""

from __future__ import annotations

from finetune_pipeline.config import Task
from finetune_pipeline.errors import WaitingForPeople
from finetune_pipeline.records import Artifact
from finetune_pipeline.review import verdict_store
from finetune_pipeline.review.verdict_store import Progress
from finetune_pipeline.store import TaskStore


def sample_progress(task: Task, store: TaskStore, sample: Artifact) -> Progress:
    """How many rows of the sample have all their verdicts."""
    rows = list(sample.examples("sample.jsonl"))
    return verdict_store.progress(rows, verdict_store.load(store, task, sample), task.review)


def require_review_complete(task: Task, store: TaskStore) -> None:
    """WaitingForPeople when rows of the current sample lack a verdict; returns when there is no sample yet."""
    sample = store.current("review_sample")
    if sample is None:
        return
    progress = sample_progress(task, store, sample)
    if progress.done < progress.total:
        raise waiting_for_experts(task.name, progress)


def waiting_for_experts(task: str, progress: Progress) -> WaitingForPeople:
    """The exception that ends a run while rows of the sample lack a verdict."""
    return WaitingForPeople(
        f"{task} waits for its experts: {progress.done} of {progress.total} rows reviewed",
        f"open the desk (`finetune up`) and review at /tasks/{task}/review; the next run goes on from there",
    )
