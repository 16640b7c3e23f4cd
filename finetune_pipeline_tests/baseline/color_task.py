"""A label task of three colors for the tests of both reports, with the tiny model as its base.

task = color_task(tiny_model)
artifacts = base_and_split(store, task)        # 30 training rows "t0", ..., and 9 test rows "q0", ...
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from finetune_pipeline.config import Task
from finetune_pipeline.records import Artifact, Example, Silent, read_jsonl
from finetune_pipeline.store import StageContext, TaskStore
from finetune_pipeline_tests.artifacts import example, finished, task

LABELS = ("red", "green", "blue")
TEST_ROWS = 9


def color_task(model: Path) -> Task:
    return task(
        base={"path": str(model), "license": "apache-2.0"},
        answer={"format": "label", "labels": LABELS},
        prompt={"system": "Say the color."},
        baseline={"shots": 2},
        evaluate={"batch_size": 4},
        suitability={"hosting_per_month": 73.0, "requests_per_day": 100},
    )


def rows(prefix: str, count: int) -> list[Example]:
    rng = random.Random(prefix)
    return [example(f"{prefix}{i}", f"{rng.choice(LABELS)} door {i}", rng.choice(LABELS)) for i in range(count)]


def base_and_split(store: TaskStore, declared: Task) -> dict[str, Artifact]:
    from finetune_pipeline.models.model_source import prepare

    _, facts = prepare(declared.base, store.task, Silent())
    split = {"train.jsonl": rows("t", 30), "validation.jsonl": [], "test.jsonl": rows("q", TEST_ROWS)}
    return {
        "base_model": finished(store, "base_model", {"base_model.json": facts}),
        "training_search": finished(store, "training_search", {"search.json": {"declared": False}}),
        "data_split": finished(store, "data_split", split),
    }


def commit(store: TaskStore, context: StageContext, asset: str) -> Artifact:
    """Store what a stage function wrote as the artifact `asset`."""
    files = {path.name: list(read_jsonl(path)) for path in context.out.glob("*.jsonl")}
    report = json.loads((context.out / "report.json").read_text("utf-8"))
    return finished(store, asset, {**files, "report.json": report})
