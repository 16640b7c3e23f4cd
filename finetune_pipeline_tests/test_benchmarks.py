"""What the benchmarks prepare before they measure."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from finetune_pipeline.store.paths import STAGES, stage_folder
from finetune_pipeline_tests.benchmark import benchmark


def test_the_demo_begins_without_anything_that_an_earlier_run_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, task = benchmark("demo"), tmp_path / "project" / "data" / "tickets"
    declared = ("task.yaml", "raw/shop.csv", "review/verdicts.jsonl")
    made = [f"{stage_folder(stage)}/asset/key/manifest.json" for stage in STAGES]
    for name in (*declared, *made, "frozen_test.jsonl", ".work/scratch"):
        (task / name).parent.mkdir(parents=True, exist_ok=True)
        (task / name).write_text("{}", "utf-8")
    monkeypatch.setattr(demo, "ROOT", tmp_path / "project")
    (tmp_path / "run").mkdir()
    demo.prepared(tmp_path / "run", Namespace(task="tickets", precision=None, keep_models=False), {})
    copied = tmp_path / "run" / "data" / "tickets"
    assert {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()} == {*declared}
