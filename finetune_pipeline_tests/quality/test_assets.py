"""The asset data_quality with the real Great Expectations."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.quality.assets import data_quality
from finetune_pipeline.records import Artifact, Drop, Example, Verdict, read_jsonl, write_jsonl
from finetune_pipeline.store import StageContext, TaskStore
from finetune_pipeline_tests.quality.conftest import declare, rows


def context_of(folder: Path, examples: list[Example], dropped: int, unreadable: int = 0) -> StageContext:
    cleaned, out = folder / "cleaned", folder / "out"
    cleaned.mkdir(exist_ok=True)
    out.mkdir()
    write_jsonl(cleaned / "examples.jsonl", examples)
    write_jsonl(cleaned / "drops.jsonl", (Drop(f"d{n}", f"t.csv:{n}", "clean", "too-long") for n in range(dropped)))
    clean = Artifact("clean_examples", "k", "3fa9c0ffee", cleaned, {"summary": {}})
    read = len(examples) + dropped + unreadable
    file = {"file": "tickets.csv", "source": "tickets", "rows": read, "examples": read - unreadable}
    file |= {"format": "csv", "encoding": "utf-8", "layout": "columns"}
    raw = Artifact("raw_examples", "k", "0badc0ffee", cleaned, {"summary": {"files": [file]}})
    inputs = {"raw_examples": raw, "clean_examples": clean}
    return StageContext(declare(), TaskStore("tickets", folder), inputs, out, "key", "2026-01-01T00:00:00")


def test_the_artifact_holds_verdict_rows_and_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    context = context_of(tmp_path, rows(100, bad=30), dropped=20)
    result = data_quality(context)
    files = sorted(str(path.relative_to(context.out)) for path in context.out.rglob("*") if path.is_file())
    assert files == ["report.html", "rows.jsonl", "validation_result.json", "verdict.json"]
    made = Artifact("data_quality", "k", "c", context.out, {})
    assert result.verdict == Verdict.from_json(made.json("verdict.json"))
    assert result.verdict is not None and not result.verdict.passed
    assert result.verdict.about == "3fa9c0ffee"
    assert [line["id"] for line in read_jsonl(made.path("rows.jsonl"))] == [f"row{n}" for n in range(30)]
    assert result.verdict.figures["failing"] == [f"row{n}" for n in range(20)]  # the first twenty
    assert result.summary["share"] == 0.7
    assert result.summary["share_dropped"] == pytest.approx(20 / 120)
    assert result.verdict.summary in made.path("report.html").read_text("utf-8")
    assert capfd.readouterr().err == ""


def test_rows_that_could_not_be_read_stop_the_gate(tmp_path: Path) -> None:
    result = data_quality(context_of(tmp_path, rows(100), dropped=10, unreadable=900))
    assert result.verdict is not None and not result.verdict.passed
    assert "at most 50 % of the rows of tickets could not be read: 89.2 %" in result.verdict.summary


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    contents = []
    for folder in (first, second):
        folder.mkdir()
        context = context_of(folder, rows(30), dropped=3)
        assert data_quality(context).summary["passed"] is True
        contents.append({path.name: path.read_bytes() for path in context.out.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]
