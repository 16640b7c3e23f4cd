"""The asset `training_search`, and what `adapter` takes from it: with a tiny model, in this process."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.backends import launch
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Task
from finetune_pipeline.records import Artifact, Silent, write_jsonl
from finetune_pipeline.store import StageContext, TaskStore
from finetune_pipeline.tracking.client import connect
from finetune_pipeline.train.assets import adapter
from finetune_pipeline.train.search.assets import training_search
from finetune_pipeline.train.search.spec import SearchResult
from finetune_pipeline_tests.artifacts import finished, stage_context, task, task_store
from finetune_pipeline_tests.baseline.color_task import LABELS, base_and_split, rows

TRAIN: dict[str, Any] = {
    "lora": {"r": 4, "alpha": 8},
    "num_epochs": 2,
    "batch_size": 8,
    "precision": "fp32",
    "keep_general": {"weight": 0.0},
    "validation": {"generate_rows": 0},
}


def declared(model: Path, search: Any = None) -> Task:
    return task(
        base={"path": str(model), "license": "apache-2.0"},
        answer={"format": "label", "labels": LABELS},
        prompt={"system": "Say the color."},
        train=TRAIN,
        **({"search": search} if search else {}),
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return task_store(tmp_path, monkeypatch)


def context_of(declared: Task, store: TaskStore, tmp_path: Path, **more: Artifact) -> StageContext:
    """Without test.jsonl in the split: nothing here may read it."""
    inputs = base_and_split(store, declared)
    split = {"train.jsonl": rows("t", 24), "validation.jsonl": rows("v", 9)}
    inputs |= {"data_split": finished(store, "data_split", split), **more}
    return stage_context(declared, store, tmp_path, **inputs)


def in_this_process(module: str, spec: JobData, *others: Any) -> JobData:
    """The job that a backend would start, with its description as it would be in job.json."""
    result: JobData = importlib.import_module(module).run(type(spec).from_json(spec.to_json()), Silent())
    return result


def test_the_training_uses_the_best_trial_and_says_so(
    tiny_model: Path, here: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = {"trials": 3, "parameters": {"learning_rate": [0.02, 1e-6], "row_share": [0.5, 1.0]}}
    setting = declared(tiny_model, search)
    context = context_of(setting, here, tmp_path)
    monkeypatch.setattr(launch, "run", in_this_process)
    outcome = training_search(context)
    result = SearchResult.from_json(json.loads((context.out / "search.json").read_text("utf-8")))
    best = result.best_trial
    assert best is not None and best.values["learning_rate"] == 0.02 and outcome.summary["trials"] == 3
    page = (context.out / "report.html").read_text("utf-8")
    assert "Trial" in page and "The best of\n3 is chosen" in page and "no test row was read" in page
    assert outcome.unfinished is not None and (outcome.unfinished / "trials.jsonl").exists()

    files = {"search.json": result.to_json()}
    found = finished(here, "training_search", files)
    training = context_of(setting, here, tmp_path, training_search=found)
    trained = adapter(training)
    written = json.loads((training.out / "training.json").read_text("utf-8"))
    assert written["learning_rate"] == 0.02 and written["rows"] == best.rows
    assert written["validation_loss"] == pytest.approx(best.loss, rel=1e-4), "the same training"
    assert written["search"]["trial"] == best.number and written["search"]["trials"] == 3
    assert written["search"]["values"] == best.values and written["search"]["search"] == found.content_hash
    assert written["origins"].keys() == best.values.keys()
    assert all("the best of 3 by validation loss" in origin for origin in written["origins"].values())
    params = connect().MlflowClient().get_run(str(trained.summary["mlflow_run_id"])).data.params
    assert params["learning_rate"] == "0.02" and params["search.trials"] == "3"
    assert params["search.chosen"] == "learning_rate, row_share" and params["search"] == found.content_hash


def test_without_a_search_nothing_runs_and_the_settings_are_the_declared_ones(
    tiny_model: Path, here: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_pipeline.backends.local.run", None)  # a job would fail
    pages = []
    inputs = context_of(declared(tiny_model), here, tmp_path).inputs
    for _ in range(2):
        context = stage_context(declared(tiny_model), here, tmp_path, **inputs)
        assert training_search(context).summary == {"search": "not declared"}
        pages.append([(context.out / name).read_bytes() for name in ("search.json", "report.html")])
    assert pages[0] == pages[1], "the training is not made again because of it"
    assert b"declares no search" in pages[0][1]
    result = SearchResult.from_json(json.loads(pages[0][0]))
    assert not result.declared and result.inputs["data_split"] == inputs["data_split"].content_hash


def test_the_rows_of_a_left_out_source_are_not_trained_on(tiny_model: Path, here: TaskStore, tmp_path: Path) -> None:
    from dataclasses import replace

    from finetune_pipeline.train.assets import training_spec
    from finetune_pipeline.train.spec import SearchChoice

    context = context_of(declared(tiny_model), here, tmp_path)
    values = {"without_sources": ["web"], "row_share": 0.5, "lora.r": 2}
    spec = training_spec(context, tmp_path / "job", SearchChoice(2, 5, "loss", values, "4be0"))
    assert (spec.without_sources, spec.share, spec.rules.lora.r, spec.rules.lora.alpha) == (("web",), 0.5, 2, 4)
    assert spec.rules.learning_rate == 2e-3 and "default for" in spec.origins["learning_rate"]
    write_jsonl(tmp_path / "rows.jsonl", [replace(row, source="web") for row in rows("t", 6)] + rows("u", 8))
    from finetune_pipeline.train.assembly import assemble

    setup = assemble(replace(spec, train=tmp_path / "rows.jsonl"))
    assert len(setup.rows["train"]) == 4 and all(row.id.startswith("u") for row in setup.rows["train"])
