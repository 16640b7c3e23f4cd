"""Where the servers listen, and the pages that are linked."""

from __future__ import annotations

import pytest

from finetune_pipeline.config.addresses import mlflow_page


def test_mlflow_opens_at_the_experiment_and_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("FINETUNE_MLFLOW_URL", "http://127.0.0.1:8312/")
    assert mlflow_page() == "http://127.0.0.1:8312"
    assert mlflow_page("3") == "http://127.0.0.1:8312/#/experiments/3"
    assert mlflow_page("3", "c0ffee") == "http://127.0.0.1:8312/#/experiments/3/runs/c0ffee"
