"""A real MLflow on SQLite: resumed runs, versions, aliases; and no password in any message."""

from __future__ import annotations

import logging
import re
import sys
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_pipeline import tracking
from finetune_pipeline.config.addresses import mlflow_server
from finetune_pipeline.config.credentials import hide_credentials, without_credentials
from finetune_pipeline.errors import JobCanceled, StorageError
from finetune_pipeline.tracking.client import error_line, mlflow_call
from finetune_pipeline_tests.mlflow_registry import alias_version, version_tags
from finetune_pipeline_tests.train.setup import LogRecorder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_a_run_is_resumed_and_becomes_a_version(home: Path) -> None:
    import mlflow

    (home / "adapter").mkdir()
    (home / "adapter" / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(JobCanceled), tracking.training_run("parcels", None, {"lora.r": 4}, {"data": "d1"}) as run:
        run.log_metrics({"loss": 2.0}, step=1)
        run.log_dataset("train.jsonl", "d1", rows=12)
        raise JobCanceled("stopped")
    client = mlflow.MlflowClient()
    assert client.get_run(run.run_id).info.status == "KILLED"

    with tracking.training_run("parcels", run.run_id, {"lora.r": 99}) as again:
        again.log_metrics({"loss": 1.0}, step=2)
        again.log_artifacts(home / "adapter", "adapter")
    assert again.run_id == run.run_id
    seen = client.get_run(run.run_id)
    assert (seen.info.status, seen.data.params["lora.r"], seen.data.tags["data"]) == ("FINISHED", "4", "d1")
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(1, 2.0), (2, 1.0)]
    assert seen.inputs.dataset_inputs[0].dataset.digest == "d1"
    assert (home / "mlartifacts" / "parcels" / run.run_id / "artifacts" / "adapter" / "adapter_config.json").exists()

    assert alias_version("parcels", "champion") is None
    first = tracking.register("parcels", run.run_id, "adapter", {"content": "c1"}, "first")
    second = tracking.register("parcels", run.run_id, "adapter", {"content": "c2"}, "second")
    assert (first, second) == (1, 2)
    tracking.set_alias("parcels", "champion", 1)
    tracking.set_alias("parcels", "champion", 2)
    assert alias_version("parcels", "champion") == 2
    assert version_tags("parcels", 2) == {"content": "c2"}


def test_a_deleted_run_is_replaced_by_a_new_one(home: Path) -> None:
    with tracking.training_run("parcels", "0" * 32, {"lora.r": 4}) as run:
        assert run.run_id != "0" * 32


def test_files_that_a_run_could_not_log_are_logged_on_registration(home: Path) -> None:
    import mlflow

    (home / "adapter").mkdir()
    (home / "adapter" / "adapter_config.json").write_text("{}", "utf-8")
    with tracking.training_run("parcels", None, {}) as run:
        pass
    tracking.register("parcels", run.run_id, "adapter", {}, "first", folder=home / "adapter")
    assert [f.path for f in mlflow.MlflowClient().list_artifacts(run.run_id, "adapter")] == [
        "adapter/adapter_config.json"
    ]


def test_an_upload_that_broke_off_is_completed_before_a_version_is_made(home: Path) -> None:
    import mlflow

    folder = home / "adapter"
    (folder / "parts").mkdir(parents=True)
    for name in ("a.safetensors", "b.safetensors", "parts/c.json"):
        (folder / name).write_text(f"weights of {name}", "utf-8")
    with tracking.training_run("parcels", None, {}) as run:
        pass
    client = mlflow.MlflowClient()
    ended = client.get_run(run.run_id).info.end_time
    client.log_artifact(run.run_id, str(folder / "a.safetensors"), "adapter")
    client.log_text(run.run_id, "wei", "adapter/b.safetensors")  # as far as it came
    version = tracking.register("parcels", run.run_id, "adapter", {}, "first", folder=folder)
    source = client.get_model_version("parcels", str(version)).source
    found = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(home / "found")))
    for name in ("a.safetensors", "b.safetensors", "parts/c.json"):
        assert (found / name).read_text("utf-8") == f"weights of {name}"
    assert client.get_run(run.run_id).info.end_time == ended


DOWN = "http://anna:secret@127.0.0.1:9"


def test_an_unresponsive_mlflow_is_given_up_within_a_minute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's defaults are eight attempts of 120 s; the limits are compared as MLflow itself reads them."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    for limit in (MLFLOW_HTTP_REQUEST_TIMEOUT, MLFLOW_HTTP_REQUEST_MAX_RETRIES):
        monkeypatch.setenv(limit.name, "")
        monkeypatch.delenv(limit.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DOWN)
    with pytest.raises(StorageError, match="could not set an alias"):
        tracking.set_alias("parcels", "champion", 1)
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() * (1 + MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) <= 60


def test_no_password_is_shown_when_mlflow_is_down(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    import mlflow

    mlflow.set_tracking_uri(
        "http://127.0.0.1:9/other"
    )  # so that connect() configures mlflow again, which sends a request
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{DOWN}/mlflow")
    report = LogRecorder()
    with tracking.training_run("parcels", None, {}, report=report) as run:
        run.log_dataset("train.jsonl", "d1", rows=12)
    with pytest.raises(StorageError, match=r"MLflow at http://127\.0\.0\.1:9/mlflow could not") as caught:
        tracking.sync(report.log)
    assert "MLflow did not accept a record" in caplog.text
    assert "MLflow at http://127.0.0.1:9/mlflow is away" in report.lines[0] and "finetune sync" in report.lines[1]
    written = "".join(path.read_text("utf-8") for path in home.rglob("*") if path.is_file())
    for text in (caplog.text, str(caught.value), str(report.lines), written):
        assert "secret" not in text


def test_every_request_to_an_mlflow_that_is_down_is_a_storage_error_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{DOWN}/mlflow")
    requests: list[Callable[[], object]] = [
        lambda: tracking.register("parcels", "r1", "adapter", {}, "why"),
        lambda: tracking.find_version("parcels", "adapter", "a1"),
        lambda: tracking.set_alias("parcels", "champion", 1),
        lambda: tracking.delivered_run("parcels", "local-1"),
    ]
    for request in requests:
        with pytest.raises(StorageError, match=r"MLflow at http://127\.0\.0\.1:9/mlflow could not") as caught:
            request()
        shown = "".join(traceback.format_exception(caught.value))
        assert "secret" not in shown and "MLFLOW_TRACKING_URI" in caught.value.hint
        assert caught.value.__cause__ is None


# Addresses whose password is not percent-encoded, and what is shown of them.
UNENCODED = [
    ("http://bob:S3cr#et@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://bob:S3cr/et@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://bob:99/S3cr/et@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://bob:S3cr?et@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://bob:S3cr et@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://bob:S3cr@et@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://bob:S3cr%et@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://[bob:S3cr@127.0.0.1:9", "http://127.0.0.1:9"),
    ("http://bob:[S3cr]@127.0.0.1:9", "http://127.0.0.1:9"),
    ("no+such://bob:S3cr#et@db/mlflow", "no+such://db/mlflow"),
    ("postgresql://bob:S3cr/et@127.0.0.1:9/mlflow", "postgresql://127.0.0.1:9/mlflow"),
]


@pytest.mark.parametrize(("uri", "shown"), UNENCODED)
def test_a_password_that_is_not_encoded_is_hidden_and_the_hint_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uri: str, shown: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    opened = tracking.training_run("parcels", None, {})
    with pytest.raises(StorageError, match=f"MLflow at {re.escape(shown)} could not open a run") as caught, opened:
        pass
    assert not list(home.glob("tracking/*"))
    shown_text = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "S3cr" not in shown_text and not re.search(r"\bet\b", shown_text)
    assert "percent-encode" in caught.value.hint or "psycopg2" in caught.value.hint


def test_a_password_in_the_query_is_hidden(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    uri = "postgresql+psycopg2://db/mlflow?user=bob&password=S3cr&et&sslmode=require"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    refused = OperationalError("select 1", {}, Exception("bob, password=S3cr: refused; 'et' is no option; sslmode"))
    with pytest.raises(StorageError) as caught, mlflow_call("open a run"):
        raise refused
    assert "at postgresql+psycopg2://db/mlflow?user=bob&password=***&sslmode=require could" in str(caught.value)
    assert "bob, password=***: refused; '***' is no option; sslmode" in str(caught.value)


def test_mlflows_log_lines_about_a_database_do_not_show_the_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no+such://bob:S3cr@et@db/mlflow")
    with pytest.raises(StorageError):
        tracking.set_alias("parcels", "champion", 1)
    logger = logging.getLogger("mlflow.store.db.utils")
    logger.addHandler(caplog.handler)
    try:
        logger.warning("not created:\n%s\nagain in %.1f seconds", OSError("no host et@db"), 0.1)
    finally:
        logger.removeHandler(caplog.handler)
    assert "not created:\nno host ***@db\nagain in 0.1 seconds" in caplog.text


def test_a_missing_database_driver_has_a_hint_with_the_install_command(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob:S3cr@127.0.0.1:9/mlflow")
    with pytest.raises(StorageError, match=r"MLflow at postgresql://127.* could not set an alias: .*psycopg") as caught:
        tracking.set_alias("parcels", "champion", 1)
    assert "[postgres]" in caught.value.hint and "postgresql+psycopg2://" in caught.value.hint


def test_the_postgres_extra_installs_the_driver_that_the_hint_names() -> None:
    """A bare postgresql:// is psycopg 3 in SQLAlchemy 2.1 and psycopg2 before it; the extra installs psycopg2."""
    from sqlalchemy import make_url

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert any(need.startswith("psycopg2-binary") for need in project["optional-dependencies"]["postgres"])
    assert make_url("postgresql+psycopg2://db/mlflow").get_dialect().driver == "psycopg2"


def test_a_file_that_is_no_database_is_a_storage_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(StorageError, match=r"MLflow at sqlite:.* could not set an alias: .*not a database"):
        tracking.set_alias("parcels", "champion", 1)
    assert error_line(ValueError("")) == "ValueError"
    assert error_line(ValueError("no postgresql://anna:secret@db/x\nmore")) == "no postgresql://db/x"


def test_no_password_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_credentials("http://anna:secret@mlflow.example:5000/x?y=1") == "http://mlflow.example:5000/x?y=1"
    for unchanged in (
        "sqlite:////home/a@b/mlflow.db",
        "sqlite+pysqlite:///a@b",
        "file:///home/a@b/runs",
        "/home/a@b/runs",
        "http://h:1/x?y=1",
        "",
    ):
        assert without_credentials(unchanged) == unchanged
    for uri, shown in UNENCODED:
        assert without_credentials(uri) == shown
    assert without_credentials("http://[bob") == "http://[bob"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNENCODED[0][0])
    assert mlflow_server() == "http://127.0.0.1:9"


def test_credentials_are_hidden_in_every_form_that_libraries_print() -> None:
    assert hide_credentials("no bob:p%23w@h, p#w, 'P%23W', p%23w.", "http://bob:p%23w@h") == "no h, ***, '***', ***."
    assert hide_credentials("port=12, url: /x%20Y@h/api", "http://bob:12/x y@h") == "port=***, url: /***%20***@h/api"
    assert hide_credentials("postgresql of mlflow, token t-1", "http://t-1@h") == "postgresql of mlflow, token ***"
    assert hide_credentials("user bob: key-1", "http://key-1:@h") == "user bob: ***"
    assert hide_credentials("postgresql: bad user postgres", "x://postgres:postgres@h") == "postgresql: bad user ***"
    assert hide_credentials("all of it", "sqlite:///all@of") == hide_credentials("all of it", "") == "all of it"
