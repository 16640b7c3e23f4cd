"""The declarations in examples/ are valid, every row of theirs is read, and cleaning keeps all of them as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.clean.pipeline import clean
from finetune_pipeline.cli.status import validation_report
from finetune_pipeline.materialize import materialize, open_task

EXAMPLES = Path(__file__).parents[1] / "examples"
TASKS = sorted(path.parent.name for path in EXAMPLES.glob("*/task.yaml"))


@pytest.fixture(autouse=True)
def _data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TASKS:  # a copy: what is made must not lie in the repository
        folder = tmp_path / "data" / name
        for path in (EXAMPLES / name).rglob("*.*"):
            target = folder / path.relative_to(EXAMPLES / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))


def test_there_is_one_of_labels_and_one_of_free_text() -> None:
    assert {open_task(name)[0].answer.format for name in TASKS} == {"label", "text"}


@pytest.mark.parametrize("name", TASKS)
def test_an_example_is_valid_and_loses_no_row(name: str) -> None:
    assert "note:" not in validation_report(name)  # a problem would raise
    task, store = open_task(name)
    raw = materialize("raw_examples", task, store)
    rows = list(raw.examples())
    assert raw.summary["drops"] == 0 and len(rows) >= 16
    cleaned = clean(rows, task.clean, task.answer, task.prompt.system, lambda texts: [len(t.split()) for t in texts])
    assert (len(cleaned.kept), cleaned.fixes) == (len(rows), [])
