"""What the training process is told, and what of it MLflow keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline import tracking
from finetune_pipeline.train.assets import training_spec
from finetune_pipeline_tests.artifacts import stage_context, task_store
from finetune_pipeline_tests.baseline.color_task import base_and_split, color_task


def test_mlflow_has_every_setting_under_its_name_in_the_declaration(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, declared = task_store(tmp_path, monkeypatch), color_task(tiny_model)
    spec = training_spec(stage_context(declared, store, tmp_path, **base_and_split(store, declared)), tmp_path / "job")
    with tracking.training_run("colors", None, spec.params) as run:
        pass
    kept = mlflow.MlflowClient().get_run(run.run_id).data.params
    nested = {"lora.r": "16", "lora.alpha": "32", "lora.dropout": "0.0"}
    nested |= {"keep_general.weight": "0.2", "keep_general.texts": "1"}
    assert kept.items() >= {**nested, "learning_rate": "0.002", "base": tiny_model.name, "key": "key"}.items()
    assert spec.rules.learning_rate == 2e-3 and "default for lora, sft and 0 million" in spec.origins["learning_rate"]
    assert not any(value.startswith("{") for value in kept.values())
