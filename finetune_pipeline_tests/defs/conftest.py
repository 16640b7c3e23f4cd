"""Tasks and a Dagster instance in a place of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty $FINETUNE_DATA, with home and Dagster beside it; nothing listens at the addresses of the servers."""
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FINETUNE_DAGSTER_URL", "http://127.0.0.1:9")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def dagster(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        yield instance


def declare(data: Path, name: str, **sections: Any) -> Path:
    """A task with one source of three rows; its folder."""
    folder = data / name
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    (folder / "raw" / "rows.csv").write_text("input,output\none,1\ntwo,2\nthree,3\n", "utf-8")
    plain: dict[str, Any] = {
        "name": name,
        "sources": [{"path": "raw/rows.csv"}],
        "base": {"path": "model", "license": "apache-2.0"},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump({**plain, **sections}), "utf-8")
    return folder
