"""A task's store in a temporary folder, and cleaned rows in it, for the tests of the review."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.records import Artifact
from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import finished, task_store
from finetune_pipeline_tests.review.verdicts import ROWS, cleaned


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def clean(store: TaskStore) -> Artifact:
    finished(store, "base_model", {"base_model.json": {}})
    return cleaned(store, ROWS)
