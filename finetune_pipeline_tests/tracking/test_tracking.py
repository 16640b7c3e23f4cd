"""A real MLflow on SQLite: runs that go on, versions, aliases."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from finetune_pipeline import tracking
from finetune_pipeline.backends.progress import activity, until
from finetune_pipeline.config import Lora, Train
from finetune_pipeline.config.addresses import mlflow_server
from finetune_pipeline.config.credentials import hide_credentials, without_credentials
from finetune_pipeline.errors import JobCancelled, StorageError
from finetune_pipeline.records import Example, Message, Silent, write_jsonl
from finetune_pipeline.tracking.outbox import Outbox


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


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server, that $MLFLOW_TRACKING_URI names."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    process = subprocess.Popen(
        [*command, "--artifacts-destination", str(tmp_path / "artifacts")],
        env={**os.environ, **places}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: answers(port), lambda: activity(process.pid), "MLflow", Silent())
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def test_an_mlflow_that_goes_away_does_not_end_the_training(
    server: subprocess.Popen[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", "utf-8")
    with tracking.training_run("parcels", None, {"rank": 4}) as run:
        run.log_metrics({"loss": 2.0}, step=1)
        os.killpg(server.pid, signal.SIGSTOP)  # it hangs
        began = time.monotonic()
        for step in range(2, 50):
            run.log_metrics({"loss": 1.0}, step=step)
        assert time.monotonic() - began < 1
        os.killpg(server.pid, signal.SIGKILL)
        run.log_dataset("train.jsonl", "d1", rows=12)
        run.set_tags({"state": "done"})
        run.log_artifacts(tmp_path / "adapter", "adapter")
    said = "\n".join(record.message for record in caplog.records)
    assert "MLflow does not take metrics, and the run goes on" in said
    assert "lines of metrics are not in MLflow" in said and "the run's end" in said
    with pytest.raises(StorageError, match="does not open a run"), tracking.training_run("parcels", None, {}):
        pass


def test_a_training_without_its_mlflow_still_makes_the_adapter(
    server: subprocess.Popen[bytes], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole training job; the server is killed after the first step."""
    from finetune_pipeline.train import job

    class Killing(Silent):
        def progress(self, what: str, done: int, total: int, **figures: float) -> None:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)

    rows = [Example(f"r{n}", (Message("user", f"q {n}"), Message("assistant", "a")), "t", "t:1") for n in range(8)]
    for side in ("train", "validation"):
        write_jsonl(tmp_path / f"{side}.jsonl", rows)
    out = tmp_path / "out"
    out.mkdir()
    spec: dict[str, Any] = {
        "base": str(tiny_model), "base_id": "tiny", "system": "", "out": str(out),
        "checkpoints": str(tmp_path / "steps"),
        "train": str(tmp_path / "train.jsonl"), "validation": str(tmp_path / "validation.jsonl"), "task": "parcels",
        "rules": Train(lora=Lora(r=4, alpha=8), num_epochs=2, batch_size=4, precision="fp32").model_dump(mode="json"),
        "params": {"rank": 4}, "data": {"name": "parcels", "digest": "d1"},
    }  # fmt: skip
    training = job.run(spec, Killing())
    assert server.wait(timeout=60) == -signal.SIGKILL  # poll() at once may come before the kernel has ended it
    assert training["steps"] == 4 and training["mlflow_run_id"]
    assert training["general_divergence"] > 0  # general texts are on by default
    assert (out / "adapter_model.safetensors").exists()


def test_what_a_run_could_not_log_is_logged_when_it_is_registered(home: Path) -> None:
    import mlflow

    (home / "adapter").mkdir()
    (home / "adapter" / "adapter_config.json").write_text("{}", "utf-8")
    with tracking.training_run("parcels", None, {}) as run:
        pass
    tracking.register("parcels", run.run_id, "adapter", {}, "first", folder=home / "adapter")
    assert [f.path for f in mlflow.MlflowClient().list_artifacts(run.run_id, "adapter")] == [
        "adapter/adapter_config.json"
    ]


AWAY = "http://anna:secret@127.0.0.1:9"


def test_an_mlflow_that_hangs_is_given_up_within_a_minute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own limits are 120 s, eight times; these are what MLflow itself reads."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    for limit in (MLFLOW_HTTP_REQUEST_TIMEOUT, MLFLOW_HTTP_REQUEST_MAX_RETRIES):
        monkeypatch.setenv(limit.name, "")
        monkeypatch.delenv(limit.name)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    with pytest.raises(StorageError, match="does not set an alias"):
        tracking.set_alias("parcels", "champion", 1)
    assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() * (1 + MLFLOW_HTTP_REQUEST_MAX_RETRIES.get()) <= 60


def test_no_password_is_shown_where_mlflow_is_away(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    import mlflow

    mlflow.set_tracking_uri("http://127.0.0.1:9/other")  # so that MLflow is set up anew, which asks it already
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{AWAY}/mlflow")
    opened = tracking.training_run("parcels", None, {})
    with pytest.raises(StorageError, match=r"MLflow at http://127\.0\.0\.1:9/mlflow does not") as caught, opened:
        pass
    tracking.Run("r1", Outbox(lambda *_: True)).set_tags({"state": "done"})
    assert "MLflow does not take a tag" in caplog.text
    assert "secret" not in caplog.text and "secret" not in str(caught.value)


def test_whatever_is_asked_of_an_mlflow_that_is_away_is_an_error_of_ours_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{AWAY}/mlflow")
    asked: list[Callable[[], object]] = [
        lambda: tracking.register("parcels", "r1", "adapter", {}, "why"),
        lambda: tracking.find_version("parcels", "adapter", "a1"),
        lambda: tracking.set_alias("parcels", "champion", 1),
        lambda: tracking.delete_alias("parcels", "champion"),
        lambda: tracking.alias_version("parcels", "champion"),
        lambda: tracking.version_tags("parcels", 1),
        lambda: tracking.training_run("parcels", "0" * 32, {}).__enter__(),
    ]
    for ask in asked:
        with pytest.raises(StorageError, match=r"MLflow at http://127\.0\.0\.1:9/mlflow does not") as caught:
            ask()
        shown = "".join(traceback.format_exception(caught.value))
        assert "secret" not in shown and "MLFLOW_TRACKING_URI" in caught.value.hint
        assert "no version" not in shown and caught.value.__cause__ is None


# Addresses whose password is not encoded, or stands in the query, and what is shown of them.
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
def test_a_password_that_is_not_encoded_is_not_shown_and_the_cure_says_so(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uri: str, shown: str
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    opened = tracking.training_run("parcels", None, {})
    with pytest.raises(StorageError, match=f"MLflow at {re.escape(shown)} does not open a run") as caught, opened:
        pass
    tracking.Run("r1", Outbox(lambda *_: True)).set_tags({"state": "done"})
    said = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "S3cr" not in said and not re.search(r"\bet\b", said)
    assert "percent-encode" in caught.value.hint or "psycopg2" in caught.value.hint


def test_a_password_in_the_query_is_not_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    uri = "postgresql+psycopg2://db/mlflow?user=bob&password=S3cr&et&sslmode=require"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    refused = OperationalError("select 1", {}, Exception("bob, password=S3cr: refused; 'et' is no option; sslmode"))
    with pytest.raises(StorageError) as caught, tracking._asking("open a run"):
        raise refused
    assert "at postgresql+psycopg2://db/mlflow?user=bob&password=***&sslmode=require does" in str(caught.value)
    assert "bob, password=***: refused; '***' is no option; sslmode" in str(caught.value)


def test_what_mlflow_logs_of_a_database_does_not_show_the_password(
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


def test_a_driver_that_is_not_installed_is_an_error_with_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://bob:S3cr@127.0.0.1:9/mlflow")
    with pytest.raises(StorageError, match=r"MLflow at postgresql://127.* does not set an alias: .*psycopg") as caught:
        tracking.set_alias("parcels", "champion", 1)
    assert "[postgres]" in caught.value.hint and "postgresql+psycopg2://" in caught.value.hint


def test_the_extra_installs_the_driver_that_the_cure_names() -> None:
    """A bare postgresql:// is psycopg 3 for SQLAlchemy 2.1, and psycopg2 before it; the extra installs psycopg2."""
    from sqlalchemy import make_url

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert any(need.startswith("psycopg2-binary") for need in project["optional-dependencies"]["postgres"])
    assert make_url("postgresql+psycopg2://db/mlflow").get_dialect().driver == "psycopg2"


def test_a_database_that_is_none_is_an_error_of_ours(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlflow.db").write_text("no database" * 100)
    with pytest.raises(StorageError, match=r"MLflow at sqlite:.* does not set an alias: .*not a database"):
        tracking.set_alias("parcels", "champion", 1)
    assert tracking.said(ValueError("")) == "ValueError"
    assert tracking.said(ValueError("no postgresql://anna:secret@db/x\nmore")) == "no postgresql://db/x"


def test_no_password_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_credentials("http://anna:secret@mlflow.example:5000/x?y=1") == "http://mlflow.example:5000/x?y=1"
    for plain in (
        "sqlite:////home/a@b/mlflow.db",
        "sqlite+pysqlite:///a@b",
        "file:///home/a@b/runs",
        "/home/a@b/runs",
        "http://h:1/x?y=1",
        "",
    ):
        assert without_credentials(plain) == plain
    for uri, shown in UNENCODED:
        assert without_credentials(uri) == shown
    assert without_credentials("http://[bob") == "http://[bob"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNENCODED[0][0])
    assert mlflow_server() == "http://127.0.0.1:9"


def test_credentials_are_hidden_in_whatever_form_a_library_puts_them() -> None:
    assert hide_credentials("no bob:p%23w@h, p#w, 'P%23W', p%23w.", "http://bob:p%23w@h") == "no h, ***, '***', ***."
    assert hide_credentials("port=12, url: /x%20Y@h/api", "http://bob:12/x y@h") == "port=***, url: /***%20***@h/api"
    assert hide_credentials("postgresql of mlflow, token t-1", "http://t-1@h") == "postgresql of mlflow, token ***"
    assert hide_credentials("user bob: key-1", "http://key-1:@h") == "user bob: ***"
    assert hide_credentials("postgresql: bad user postgres", "x://postgres:postgres@h") == "postgresql: bad user ***"
    assert hide_credentials("all of it", "sqlite:///all@of") == hide_credentials("all of it", "") == "all of it"
