"""Rows and finished artifacts for the tests of single stages, in a real store in `tmp_path`.

store = task_store(tmp_path, monkeypatch)
clean = finished(store, "clean_examples", {"examples.jsonl": [example("a", "where is my parcel?", "delivery")]})
outcome = review_sample(stage_context(task(), store, tmp_path, clean_examples=clean))
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Task, task_from
from finetune_pipeline.records import Artifact, Example, Message, Verdict, write_jsonl
from finetune_pipeline.store import StageContext, TaskStore

NAME = "parcels"


def example(id_: str, prompt: str, completion: str, group: str | None = None) -> Example:
    return Example(id_, (Message("user", prompt), Message("assistant", completion)), "test", f"test.csv:{id_}", group)


def task(**sections: Any) -> Task:
    """A small declaration; sections are merged over it."""
    plain: dict[str, Any] = {
        "name": NAME,
        "sources": [{"path": "raw/test.csv"}],
        "base": {"path": "model", "license": "apache-2.0"},
    }
    return task_from({**plain, **sections}, "the test's declaration")


def task_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    return TaskStore(NAME)


def finished(
    store: TaskStore,
    asset: str,
    files: Mapping[str, Iterable[Any] | Mapping[str, Any]],
    verdict: Verdict | None = None,
    **summary: Any,
) -> Artifact:
    """Commit an artifact of these files (lists become JSONL, mappings JSON) as the current one."""
    with store.scratch(asset) as folder:
        for name, rows in files.items():
            if isinstance(rows, Mapping):
                (folder / name).write_text(json.dumps(rows), "utf-8")
            else:
                write_jsonl(folder / name, rows)
        facts = {"summary": summary, "inputs": {}, "verdict": verdict.to_json() if verdict else None}
        return store.commit(asset, f"key{len(list(_keys(store, asset)))}", folder, facts)


def stage_context(declared: Task, store: TaskStore, tmp_path: Path, **inputs: Artifact) -> StageContext:
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    out.mkdir()
    return StageContext(declared, store, inputs, out, "key", "2026-01-05T10:00:00+00:00")


def _keys(store: TaskStore, asset: str) -> Iterable[Any]:
    folder = store.folder(asset)
    return folder.iterdir() if folder.exists() else ()
