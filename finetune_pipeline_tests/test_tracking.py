"""A real MLflow on SQLite: runs that go on, versions, aliases."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline import tracking
from finetune_pipeline.errors import JobCancelled, StorageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_run_goes_on_and_becomes_a_version(home: Path) -> None:
    import mlflow

    (home / "adapter").mkdir()
    (home / "adapter" / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(JobCancelled), tracking.training_run("parcels", None, {"rank": 4}, {"dataset": "d1"}) as run:
        run.log_metrics({"loss": 2.0}, step=1)
        run.log_dataset("train.jsonl", "d1", rows=12)
        raise JobCancelled("stopped")
    client = mlflow.MlflowClient()
    assert client.get_run(run.run_id).info.status == "KILLED"

    with tracking.training_run("parcels", run.run_id, {"rank": 99}) as again:
        again.log_metrics({"loss": 1.0}, step=2)
        again.set_tags({"state": "done"})
        again.log_artifacts(home / "adapter", "adapter")
    assert again.run_id == run.run_id
    seen = client.get_run(run.run_id)
    assert (seen.info.status, seen.data.params["rank"], seen.data.tags["state"]) == ("FINISHED", "4", "done")
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert seen.inputs.dataset_inputs[0].dataset.digest == "d1"
    assert (home / "mlartifacts" / "parcels" / run.run_id / "artifacts" / "adapter" / "adapter_config.json").exists()

    assert tracking.alias_version("parcels", "champion") is None
    first = tracking.register("parcels", run.run_id, "adapter", {"content": "c1"}, "first")
    second = tracking.register("parcels", run.run_id, "adapter", {"content": "c2"}, "second")
    assert (first, second) == (1, 2)
    tracking.set_alias("parcels", "champion", 1)
    tracking.set_alias("parcels", "champion", 2)
    assert tracking.alias_version("parcels", "champion") == 2
    assert tracking.version_tags("parcels", 2) == {"content": "c2"}
    tracking.delete_alias("parcels", "champion")
    tracking.delete_alias("parcels", "champion")
    assert tracking.alias_version("parcels", "champion") is None
    with pytest.raises(StorageError, match="no version 7"):
        tracking.version_tags("parcels", 7)


def test_a_run_that_is_gone_is_begun_anew(home: Path) -> None:
    with tracking.training_run("parcels", "0" * 32, {"rank": 4}) as run:
        assert run.run_id != "0" * 32
