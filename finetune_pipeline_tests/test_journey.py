"""The whole graph with a tiny random model: real Dagster instance, Great Expectations, MLflow on SQLite, endpoint.

    to a deployed endpoint, after SIGKILL in training and a resume from the checkpoint
    stopped by the quality gate
    waiting for reviewers
    stopped by the release decision

The task can be learned by a model of two layers in seconds: name the color in a sentence.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from click.testing import CliRunner

from finetune_pipeline.cli.commands import main
from finetune_pipeline.defs.run import instance, run_task
from finetune_pipeline.errors import FinetuneError, GateRefused, WaitingForPeople
from finetune_pipeline.graph import STEPS
from finetune_pipeline.materialize import open_task, plan
from finetune_pipeline.records import Artifact, Review, Silent
from finetune_pipeline.review import verdict_store
from finetune_pipeline.store import TaskStore

COLORS = ("red", "green", "blue")
WORDS = ("paint", "wall", "door", "boat", "fence", "chair", "table", "roof", "shed", "gate", "bench", "lamp", "shelf")


class RecordingTerminal(Silent):
    """A terminal that shows nothing and records which assets were made."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def begins(self, asset: str) -> None:
        return None

    def finished(self, asset: str, artifact: Artifact) -> None:
        self.made.append(asset)

    def failed(self, asset: str, error: FinetuneError) -> None:
        return None


@pytest.fixture
def world(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TaskStore]:
    """A function that declares a task; data, home, Dagster and MLflow are in `tmp_path`."""
    for variable in ("MLFLOW_TRACKING_URI", "FINETUNE_ENDPOINT_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home" / "dagster"))
    # no server there: the run starts a temporary endpoint
    monkeypatch.setenv("FINETUNE_ENDPOINT_URL", "http://127.0.0.1:9")

    def declare(name: str, rows: list[tuple[str, str]], **sections: Any) -> TaskStore:
        folder = tmp_path / "data" / name
        (folder / "raw").mkdir(parents=True)
        with (folder / "raw" / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        plain = {
            "name": name,
            "sources": [{"path": "raw/rows.csv", "input": "text", "output": "label"}],
            "prompt": {"system": "Say the color."},
            "answer": {"format": "label", "labels": list(COLORS)},
            "base": {"path": str(tiny_model), "license": "apache-2.0"},
            "clean": {"near_duplicate_threshold": 1.0},
            "suitability": {"min_examples": 50, "recommended_examples": 100},
            "quality": {"min_rows": 50},
            "split": {"test": 0.2, "validation": 0.1, "near_duplicate_threshold": 1.0},
            "baseline": {"variants": ["zero_shot", "few_shot"], "shots": 2},
            "train": {"num_epochs": 12, "learning_rate": 0.01, "lora": {"r": 32, "alpha": 64}, "checkpoint_seconds": 0},
            "evaluate": {"general": False, "memorization": False},
            "release": {"min_slice_rows": 200, "detectable_gain": 0.2, "non_inferiority_margin": 0.4},  # 48 test rows
        }
        (folder / "task.yaml").write_text(yaml.safe_dump({**plain, **sections}), "utf-8")
        return open_task(name)[1]

    return declare


def rows(count: int = 240) -> list[tuple[str, str]]:
    """Distinct sentences of seven words, one of them the color."""
    rng = random.Random(5)
    made: dict[str, str] = {}
    while len(made) < count:
        color = rng.choice(COLORS)
        words = rng.sample(WORDS, 6)
        words.insert(rng.randrange(7), color)
        made[" ".join(words)] = color
    return list(made.items())


def approve_all(name: str) -> None:
    """Approve every row of the sample, as in the desk."""
    _, store = open_task(name)
    sample = store.current("review_sample")
    assert sample is not None
    for row in sample.examples("sample.jsonl"):
        verdict_store.save(store, Review(row.id, row.content_hash, "expert", "approve", "2026-01-05T10:00:00+00:00"))


def verdict(store: TaskStore, asset: str) -> bool:
    artifact = store.current(asset)
    assert artifact is not None
    assert artifact.verdict is not None
    return artifact.verdict.passed


def runs(status: dg.DagsterRunStatus) -> int:
    with instance() as dagster:
        return len(dagster.get_runs(dg.RunsFilter(statuses=[status])))


def test_a_task_reaches_the_endpoint_after_a_review_and_a_killed_training(world: Callable[..., TaskStore]) -> None:
    store = world("colors", rows())
    terminal = RecordingTerminal()
    with pytest.raises(WaitingForPeople, match="0 of 24 rows reviewed"):
        run_task("colors", terminal)
    assert terminal.made[-1] == "review_sample"
    assert store.current("expert_review") is None
    approve_all("colors")
    tokens = CliRunner().invoke(main, ["train", "colors", "--show-tokens"])
    assert tokens.exit_code == 0 and "training rows" in tokens.output and "<|im_end|>⟧" in tokens.output
    assert store.current("data_split") is not None and store.current("baseline_report") is None

    killed_at = kill_in_training("colors", store)
    assert store.current("adapter") is None, "a killed training must not leave an artifact"

    run_task("colors", terminal)
    task, _ = open_task("colors")
    assert {p.asset: p.state for p in plan(task, store)} == {s.asset: "fresh" for s in STEPS}
    adapter, report, endpoint = (store.current(a) for a in ("adapter", "eval_report", "deployed_endpoint"))
    assert adapter is not None
    assert report is not None
    assert endpoint is not None
    history = [json.loads(line) for line in adapter.path("history.jsonl").read_text("utf-8").splitlines()]
    assert history, "the loss curve is kept"
    assert adapter.json("training.json")["resumed_at"] >= killed_at > 0
    variants = report.json("report.json")["variants"]
    assert variants["tuned"]["exact"] > 0.6 > variants["zero_shot"]["exact"]
    assert verdict(store, "deployed_endpoint")
    accounting = store.current("data_split").json("accounting.json")  # type: ignore[union-attr]
    assert accounting["raw"] == 240 == sum(accounting["splits"].values())
    assert runs(dg.DagsterRunStatus.SUCCESS) >= 2

    again = RecordingTerminal()
    run_task("colors", again)
    assert again.made == [], "nothing changed, so nothing is made: the deployed version is not compared with itself"
    retrain(store)


def retrain(store: TaskStore) -> None:
    """Another adapter is compared with the live version and replaces it; then every asset is fresh. It is hardly
    different from the live one: how much better or worse a longer training is depends on the processor."""
    path = Path(str(store.root)) / "task.yaml"
    declared = yaml.safe_load(path.read_text("utf-8"))
    path.write_text(yaml.safe_dump({**declared, "train": {**declared["train"], "weight_decay": 1e-6}}), "utf-8")
    run_task("colors", RecordingTerminal())
    report = store.current("eval_report")
    assert report is not None
    assert report.json("report.json")["champion"]["version"] == 1
    assert {"champion", "tuned"} <= report.json("report.json")["variants"].keys()
    decision = store.current("release_decision")
    assert decision is not None
    assert "live version 1" in decision.path("decision.md").read_text("utf-8")
    assert verdict(store, "deployed_endpoint")
    again = RecordingTerminal()
    run_task("colors", again)
    assert again.made == [], "a new deployment does not make its evaluation stale"


def kill_in_training(name: str, store: TaskStore) -> int:
    """Start `finetune run` as a user does, SIGKILL it when the training has a checkpoint; returns the step of the
    checkpoint."""
    command = [sys.executable, "-m", "finetune_pipeline.cli.commands", "run", name]
    process = subprocess.Popen(
        command, env=dict(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    folder = Path(str(store.stage_folder("train"))) / "checkpoints"
    deadline = time.monotonic() + 600  # beside other work on the machine two minutes were not enough
    while time.monotonic() < deadline:
        checkpoints = folder.glob("*/steps/step-*/state.json")
        steps = [int(json.loads(path.read_text("utf-8"))["step"]) for path in checkpoints]
        if steps and max(steps) > 0:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return max(steps)
        assert process.poll() is None, (
            f"it ended before it could be killed:\n{process.stdout and process.stdout.read()}"
        )
        time.sleep(0.02)
    process.kill()
    raise AssertionError("no checkpoint within ten minutes")


def test_a_failed_quality_gate_stops_the_run(world: Callable[..., TaskStore]) -> None:
    """Every tenth prompt is longer than declared: 90 % of the rows pass, 95 % required."""
    dirty = [(text + " very" * 60 if n % 10 == 0 else text, label) for n, (text, label) in enumerate(rows(120))]
    store = world("dirty", dirty, quality={"min_rows": 50, "max_prompt_chars": 200})
    with pytest.raises(GateRefused, match="data_quality failed"):
        run_task("dirty", RecordingTerminal())
    assert not verdict(store, "data_quality")
    assert store.current("review_sample") is None
    with pytest.raises(GateRefused):  # also in a later run: the verdict is stored
        run_task("dirty", RecordingTerminal())
    assert store.current("review_sample") is None


def test_a_failed_release_decision_stops_the_run(world: Callable[..., TaskStore]) -> None:
    """With a learning rate near zero there is no gain, so no registered model and no endpoint."""
    store = world("lazy", rows(120), train={"num_epochs": 1, "learning_rate": 1e-9, "checkpoint_seconds": 60})
    with pytest.raises(WaitingForPeople):
        run_task("lazy", RecordingTerminal())
    approve_all("lazy")
    with pytest.raises(GateRefused):
        run_task("lazy", RecordingTerminal())
    assert store.current("registered_model") is None
    assert store.current("deployed_endpoint") is None
    refused = store.current("release_decision") or store.current("adapter")
    assert refused is not None
    assert refused.verdict is not None
    assert not refused.verdict.passed
