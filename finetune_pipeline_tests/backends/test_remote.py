"""What a job on a cluster gets of this process's environment, and what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.backends.remote import forwarded
from finetune_pipeline.errors import TrainingFailed

SHARED = Path("/shared")
HOME = {"FINETUNE_HOME": "/shared/home"}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_HOME", HOME["FINETUNE_HOME"])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_without_an_address_the_database_in_the_shared_home_folder_counts() -> None:
    assert forwarded(SHARED, own_address=False) == HOME


@pytest.mark.parametrize(
    "uri",
    [
        "http://mlflow:5000",
        "postgresql+psycopg2://db/mlflow",
        "databricks",
        "sqlite:////shared/a@b/mlflow.db",
        "file:///shared/mlruns",
        "/shared/mlruns",
    ],
)
def test_an_address_that_every_machine_reaches_is_forwarded(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert forwarded(SHARED, own_address=True) == {**HOME, "MLFLOW_TRACKING_URI": uri}


@pytest.mark.parametrize(
    "uri",
    [
        "https://bob:S3cret@mlflow.example.com",
        "https://S3cret@mlflow.example.com",
        "postgresql://db/mlflow?user=bob&password=S3cret",
    ],
)
def test_credentials_are_never_forwarded(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert forwarded(SHARED, own_address=True) == HOME
    with pytest.raises(TrainingFailed, match="a user or a password") as caught:
        forwarded(SHARED, own_address=False)
    assert "S3cret" not in str(caught.value) and "MLFLOW_TRACKING_PASSWORD" in caught.value.hint


@pytest.mark.parametrize("uri", ["sqlite:////var/mlflow.db", "sqlite:///mlflow.db", "./mlruns", "file:///var/mlruns"])
@pytest.mark.parametrize("own_address", [True, False])
def test_a_file_of_this_machine_is_refused(uri: str, own_address: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrainingFailed, match="do not see"):
        forwarded(SHARED, own_address)
