"""Dagster's own settings: made where there are none, and a team's settings survive."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from finetune_pipeline.defs.run import instance

ROOT = Path(__file__).parents[2]
MAKE = shutil.which("make")
OURS = "telemetry: {enabled: false}\n"
TEAM = "telemetry: {enabled: false}\nconcurrency: {runs: {max_concurrent_runs: 77}}\n"


@pytest.fixture
def dagster_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$DAGSTER_HOME, not there yet; the working directory holds the project's dagster.yaml."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "dagster.yaml").write_text(OURS, "utf-8")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    return tmp_path / "dagster"


def test_the_first_start_takes_the_project_settings(dagster_home: Path) -> None:
    with instance():
        pass
    assert (dagster_home / "dagster.yaml").read_text("utf-8") == OURS


def test_the_settings_of_a_team_survive(dagster_home: Path) -> None:
    dagster_home.mkdir()
    (dagster_home / "dagster.yaml").write_text(TEAM, "utf-8")
    with instance() as dagster:
        assert dagster.get_settings("concurrency")["runs"]["max_concurrent_runs"] == 77
    assert (dagster_home / "dagster.yaml").read_text("utf-8") == TEAM


def test_settings_that_are_mounted_are_not_touched(dagster_home: Path, tmp_path: Path) -> None:
    """A link, as a Kubernetes ConfigMap is mounted: neither its target nor its time changes."""
    dagster_home.mkdir()
    mounted = tmp_path / "mounted.yaml"
    mounted.write_text(TEAM, "utf-8")
    os.utime(mounted, (1_000, 1_000))
    (dagster_home / "dagster.yaml").symlink_to(mounted)
    with instance():
        pass
    assert mounted.read_text("utf-8") == TEAM
    assert mounted.stat().st_mtime == 1_000


def test_a_place_without_settings_gets_the_defaults_of_dagster(dagster_home: Path) -> None:
    Path("dagster.yaml").unlink()
    with instance():
        pass
    assert (dagster_home / "dagster.yaml").read_text("utf-8") == ""


@pytest.mark.skipif(MAKE is None, reason="make is not installed")
@pytest.mark.parametrize(("before", "after"), [(None, OURS), (TEAM, TEAM)])
def test_make_keeps_the_settings_of_a_team(tmp_path: Path, before: str | None, after: str) -> None:
    """The recipe that makes the environment, run by the real `make` with stand-ins for python, pip and uv."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "dagster.yaml").write_text(OURS, "utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv").mkdir()
    for name in ("pip", "uv"):
        (tmp_path / "bin" / name).symlink_to("/bin/true")
    settings = tmp_path / ".finetune" / "dagster" / "dagster.yaml"
    if before is not None:
        settings.parent.mkdir(parents=True)
        settings.write_text(before, "utf-8")
    subprocess.run([str(MAKE), "PYTHON=true", "BIN=bin", ".venv/.ready"], cwd=tmp_path, check=True, capture_output=True)
    assert settings.read_text("utf-8") == after
