"""A provider on loopback, a task that trains there, and a guard: no connection leaves loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Task, task_from
from finetune_pipeline_tests.baseline.color_task import color_task
from finetune_pipeline_tests.providers.fake_provider import KEY, MODEL, FakeProvider, serving


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests: it takes seconds to make."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def only_loopback(mlflow_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections and names outside loopback fail in this process; jobs inherit a proxy that does not exist."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1,localhost")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def url(provider: FakeProvider) -> Iterator[str]:
    with serving(provider) as address:
        yield address


def managed(base: Path, url: str, **settings: Any) -> Task:
    """The task of three colors, trained at the provider."""
    plain = color_task(base).model_dump(mode="json", by_alias=True)
    chosen = {
        "model": MODEL,
        "base_url": url,
        "poll_seconds": 0.05,
        "price_per_million_training_tokens": 5.0,
        "price_per_million_prompt_tokens": 0.8,
        "price_per_million_completion_tokens": 3.2,
    }
    return task_from({**plain, "train": {"provider": {**chosen, **settings}}}, "the test's declaration")
