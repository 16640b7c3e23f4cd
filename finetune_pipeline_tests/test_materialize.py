"""materialize and plan on a graph of three toy steps: rows, a gate on them, and a step that requires the gate."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline import graph, materialize
from finetune_pipeline.config import Task, task_from
from finetune_pipeline.errors import GateRefused, StorageError
from finetune_pipeline.graph import External, Step
from finetune_pipeline.materialize import open_task, plan
from finetune_pipeline.records import Artifact, Verdict
from finetune_pipeline.store import StageContext, StageResult, TaskStore, sha256_file, write_atomic

HERE = "finetune_pipeline_tests.test_materialize"
MADE: list[str] = []  # the assets whose functions were called, in order
RAW = ["one", "two"]  # read by the first step, and part of its fingerprint


UNFINISHED = Path("unfinished")


def rows(context: StageContext) -> StageResult:
    MADE.append("raw_examples")
    (context.out / "rows.txt").write_text("\n".join(RAW), "utf-8")
    return StageResult({"rows": len(RAW)})


def fingerprint(task: Task, store: TaskStore) -> str:
    return "\n".join(RAW)


def check_rows(context: StageContext) -> StageResult:
    MADE.append("data_quality")
    (context.out / "verdict.txt").write_text("checked", "utf-8")
    raw = context.inputs["raw_examples"]
    enough = len(raw.path("rows.txt").read_text("utf-8").split()) >= context.task.quality.min_rows
    return StageResult({}, Verdict("data_quality", enough, raw.content_hash, "too few rows"))


def split(context: StageContext) -> StageResult:
    MADE.append("data_split")
    (context.out / "half.txt").write_text("half", "utf-8")
    if "boom" in RAW:
        raise RuntimeError("boom")
    if "full" in RAW:
        raise OSError(errno.ENOSPC, "No space left on device")
    time.sleep(0.3)
    return StageResult({"rows": 1}, unfinished=UNFINISHED)


STEPS = (
    Step("raw_examples", make=f"{HERE}:rows", external=External("rows", f"{HERE}:fingerprint")),
    Step("data_quality", make=f"{HERE}:check_rows", needs=("raw_examples",), config_sections=("quality",)),
    Step(
        "data_split",
        make=f"{HERE}:split",
        needs=("raw_examples",),
        gates=(("data_quality", "raw_examples"),),
        config_sections=("split",),
    ),
)


@pytest.fixture(autouse=True)
def _toy_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(materialize, "STEPS", STEPS)
    monkeypatch.setattr(materialize, "BY_NAME", {step.asset: step for step in STEPS})
    MADE.clear()
    RAW[:] = ["one", "two"]
    yield


@pytest.fixture
def store(tmp_path: Path) -> TaskStore:
    return TaskStore("tickets", tmp_path / "data")


def declare(**sections: Any) -> Task:
    minimal = {"name": "tickets", "sources": [{"path": "x"}], "base": {"path": "m", "license": "mit"}}
    return task_from(minimal | {"quality": {"min_rows": 2}} | sections, "task.yaml")


def make(store: TaskStore, task: Task, *assets: str) -> Artifact:
    return [materialize.materialize(asset, task, store) for asset in assets or (step.asset for step in STEPS)][-1]


def states(store: TaskStore, task: Task) -> list[str]:
    return [each.state for each in plan(task, store)]


def test_a_fresh_artifact_is_reused(store: TaskStore) -> None:
    task = declare()
    assert states(store, task) == ["missing"] * 3
    first = make(store, task)
    assert states(store, task) == ["fresh"] * 3
    assert make(store, task) == first
    assert MADE == ["raw_examples", "data_quality", "data_split"]
    assert materialize.materialize("data_split", task, store, force=True).content_hash == first.content_hash
    assert MADE[3:] == ["data_split"]


def test_the_manifest_records_inputs_and_declaration(store: TaskStore) -> None:
    task = declare()
    made = make(store, task)
    raw = store.current("raw_examples")
    assert raw is not None
    assert made.manifest["inputs"] == {"raw_examples": raw.content_hash}
    assert made.manifest["declaration"] == {"split": task.split.model_dump(mode="json")}
    assert made.summary == {"rows": 1}
    assert made.verdict is None
    store.verify(made)


def test_a_changed_fingerprint_makes_everything_stale(store: TaskStore) -> None:
    make(store, declare())
    RAW.append("three")
    assert states(store, declare()) == ["stale"] * 3
    make(store, declare())
    assert states(store, declare()) == ["fresh"] * 3


def test_a_changed_section_makes_only_its_step_stale(store: TaskStore) -> None:
    make(store, declare())
    changed = declare(split={"seed": 12})
    assert states(store, changed) == ["fresh", "fresh", "stale"]
    assert states(store, declare(train={"num_epochs": 1})) == ["fresh"] * 3  # no step reads that section


def test_a_new_version_of_the_code_makes_its_step_stale(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    make(store, declare())
    monkeypatch.setattr(materialize, "STEPS", (*STEPS[:2], replace(STEPS[2], version="2")))
    assert states(store, declare()) == ["fresh", "fresh", "stale"]


def test_an_earlier_declaration_reuses_its_artifact(store: TaskStore) -> None:
    before = make(store, declare())
    make(store, declare(split={"seed": 12}))
    assert states(store, declare()) == ["fresh", "fresh", "stale"]  # it exists, but another one is current
    MADE.clear()
    assert make(store, declare()) == before
    assert MADE == []
    assert store.current("data_split") == before
    assert states(store, declare()) == ["fresh"] * 3


def test_a_missing_input_is_named(store: TaskStore) -> None:
    with pytest.raises(GateRefused, match="data_split needs raw_examples, which has not been made yet"):
        make(store, declare(), "data_split")


def test_a_gate_without_a_verdict_blocks(store: TaskStore) -> None:
    with pytest.raises(GateRefused, match="Gate data_quality has no verdict for raw_examples"):
        make(store, declare(), "raw_examples", "data_split")


def test_a_failed_gate_blocks_and_its_verdict_is_stored(store: TaskStore) -> None:
    with pytest.raises(GateRefused, match="Gate data_quality failed for raw_examples: too few rows"):
        make(store, declare(quality={"min_rows": 3}))
    gate = store.current("data_quality")
    assert gate is not None and gate.verdict is not None and not gate.verdict.passed
    assert "data_split" not in MADE


def test_a_verdict_about_other_data_blocks(store: TaskStore) -> None:
    make(store, declare())
    RAW.append("three")
    with pytest.raises(GateRefused, match="Gate data_quality checked other data"):
        make(store, declare(), "raw_examples", "data_split")


def test_a_verdict_under_other_thresholds_blocks(store: TaskStore) -> None:
    make(store, declare())
    stricter = declare(quality={"min_rows": 3}, split={"seed": 12})
    with pytest.raises(GateRefused, match=r"used other settings: `quality` in task.yaml changed since\n.*data_quality"):
        make(store, stricter, "data_split")


@pytest.mark.parametrize(
    ("raw", "error", "message"), [("boom", RuntimeError, "boom"), ("full", StorageError, "no room left")]
)
def test_a_failed_stage_leaves_no_artifact(store: TaskStore, raw: str, error: type[Exception], message: str) -> None:
    RAW.append(raw)
    with pytest.raises(error, match=message):
        make(store, declare())
    assert store.current("data_split") is None
    assert list((Path(str(store.root)) / ".work").iterdir()) == []
    RAW[:] = ["one", "two", "three"]
    assert make(store, declare()).path("half.txt").exists()


def test_an_input_edited_by_hand_is_an_error(store: TaskStore) -> None:
    """Also when size and modification time are unchanged."""
    raw = make(store, declare(), "raw_examples")
    make(store, declare(), "data_quality")
    path = raw.path("rows.txt")
    stat = path.stat()
    path.write_text("one\ntoo", "utf-8")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(StorageError, match=r"rows\.txt is not what raw_examples wrote.*\n.*delete") as refused:
        make(store, declare(), "data_split")
    assert str(raw.folder) in refused.value.hint
    assert "data_split" not in MADE
    shutil.rmtree(raw.folder)
    assert make(store, declare()).path("half.txt").exists(), "the hint works"


def test_an_artifact_whose_file_is_missing_is_not_fresh_and_is_made_again(store: TaskStore) -> None:
    first = make(store, declare())
    first.path("half.txt").unlink()
    assert states(store, declare()) == ["fresh", "fresh", "missing"]
    assert make(store, declare()).content_hash == first.content_hash
    assert states(store, declare()) == ["fresh"] * 3


def test_a_manifest_edited_together_with_its_file_is_an_error(store: TaskStore) -> None:
    raw = make(store, declare(), "raw_examples")
    make(store, declare(), "data_quality")
    raw.path("rows.txt").write_text("one\ntoo", "utf-8")
    manifest = raw.json("manifest.json")
    manifest["files"]["rows.txt"]["sha256"] = sha256_file(raw.path("rows.txt"))
    raw.path("manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(StorageError, match=r"manifest\.json is not what raw_examples wrote"):
        make(store, declare(), "data_split")


def test_every_user_of_the_split_declares_it_as_an_input() -> None:
    for asset in ("adapter", "baseline_report", "eval_report", "release_decision", "registered_model"):
        assert "data_split" in graph.BY_NAME[asset].needs


def test_two_concurrent_runs_make_an_asset_once(store: TaskStore) -> None:
    make(store, declare(), "raw_examples", "data_quality")
    threads = [threading.Thread(target=make, args=(store, declare(), "data_split")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert MADE.count("data_split") == 1


def test_a_task_is_opened_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path))
    (tmp_path / "tickets").mkdir()
    text = "name: tickets\nsources: [{path: a.csv}]\nbase: {path: m, license: mit}\n"
    (tmp_path / "tickets" / "task.yaml").write_text(text, "utf-8")
    task, opened = open_task("tickets")
    assert task.name == "tickets" == opened.task
    assert Path(str(opened.root)) == tmp_path / "tickets"


def test_the_graph_is_ordered_and_refers_to_existing_assets_and_sections() -> None:
    seen: set[str] = set()
    for step in graph.STEPS:
        assert {*step.needs, *step.after, *(gate for gate, _ in step.gates)} <= seen, step.asset
        assert {about for _, about in step.gates} <= seen, step.asset
        assert {name.partition(".")[0] for name in step.config_sections} <= set(Task.model_fields), step.asset
        seen.add(step.asset)
    assert graph.downstream("adapter")[0] == "adapter"
    assert "release_decision" in graph.downstream("adapter")
    assert "data_split" not in graph.downstream("adapter")


def test_checkpoints_are_kept_until_the_artifact_is_committed(
    store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished training must not be lost because the disk is full when its manifest is written."""
    monkeypatch.chdir(tmp_path)
    UNFINISHED.mkdir()
    task = declare()
    make(store, task, "raw_examples", "data_quality")
    write = write_atomic

    def full(path: Any, text: str) -> None:
        if path.name == "manifest.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    with monkeypatch.context() as edge:
        edge.setattr("finetune_pipeline.store.task_store.write_atomic", full)
        with pytest.raises(StorageError, match="no room left"):
            make(store, task, "data_split")
    assert UNFINISHED.exists()
    make(store, task, "data_split")
    assert not UNFINISHED.exists()


def test_what_was_made_and_what_was_found_are_told_apart(store: TaskStore) -> None:
    first, second = (materialize.materialize_or_reuse("raw_examples", declare(), store) for _ in range(2))
    assert (first.reused, second.reused) == (False, True)
    assert second.artifact == first.artifact
    assert first.fingerprint == second.fingerprint == first.artifact.manifest["fingerprint"] == "one\ntwo"
    assert not materialize.materialize_or_reuse("raw_examples", declare(), store, force=True).reused


def test_a_forced_run_that_gives_other_files_leaves_the_earlier_ones(
    store: TaskStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier artifact may be the adapter behind the endpoint: it stays under its key, whole."""
    task = declare()
    first = make(store, task, "raw_examples")
    monkeypatch.setattr(f"{HERE}.rows", lambda work: _rows_and(work, "\nfour"))
    second = materialize.materialize("raw_examples", task, store, force=True)
    assert (second.key, second.inputs_key) == (f"{first.key}.2", first.key)
    assert second.content_hash != first.content_hash
    assert store.current("raw_examples") == second
    served = store.find("raw_examples", first.key)
    assert served == first == store.by_content("raw_examples", first.content_hash)
    store.verify(first)
    assert states(store, task)[0] == "fresh"
    assert materialize.materialize_or_reuse("raw_examples", task, store).artifact == second
    third = materialize.materialize("raw_examples", task, store, force=True)
    assert (third.key, third.content_hash) == (second.key, second.content_hash), "the same files need no second folder"
    assert third.manifest["made_at"] >= second.manifest["made_at"]


def test_another_declaration_and_back_finds_the_last_forced_run(store: TaskStore) -> None:
    task, other = declare(), declare(split={"seed": 12})
    first = make(store, task)
    (first.folder / "half.txt").write_text("damaged", "utf-8")
    second = materialize.materialize("data_split", task, store, force=True)
    assert second.key == f"{first.key}.2", "the files of a damaged artifact are not taken for those of the new one"
    store.verify(second)
    make(store, other, "data_split")
    assert make(store, task, "data_split") == second


def _rows_and(work: StageContext, more: str) -> StageResult:
    (work.out / "rows.txt").write_text("\n".join(RAW) + more, "utf-8")
    return StageResult({"rows": 3})
