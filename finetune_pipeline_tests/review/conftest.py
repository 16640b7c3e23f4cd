"""A task's store in a temporary folder, for the tests of the review."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.store import TaskStore
from finetune_pipeline_tests.artifacts import task_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)
