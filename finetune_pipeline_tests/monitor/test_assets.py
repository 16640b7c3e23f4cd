"""The asset over a real store and logs as the endpoint writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Task
from finetune_pipeline.monitor.assets import traffic_fingerprint, traffic_report
from finetune_pipeline.records import Answer, Artifact, Check
from finetune_pipeline.store import StageResult, TaskStore, traffic_folder
from finetune_pipeline_tests.artifacts import NAME, example, finished, stage_context, task, task_store
from finetune_pipeline_tests.monitor.lines import line, write

KINDS = ("delivery", "returns", "refund", "account")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


def declared(**monitor: Any) -> Task:
    return task(answer={"format": "label", "labels": list(KINDS)}, monitor=monitor)


def prompt(i: int) -> str:
    return "where is my parcel? " + "please hurry, " * (i % 20)


def deploy(store: TaskStore, champion: bool = True) -> dict[str, Artifact]:
    rows = [example(f"r{i}", prompt(i), KINDS[i % 4]) for i in range(100)]
    answers = [Answer(row.id, "tuned", row.completion, 40 + i % 20, 5, 0.5) for i, row in enumerate(rows)]
    serving = {"version": 4, "adapter": "a1"} if champion else None
    return {
        "data_split": finished(store, "data_split", {"test.jsonl": rows}),
        "eval_report": finished(store, "eval_report", {"answers.jsonl": answers}),
        "deployed_endpoint": finished(store, "deployed_endpoint", {"endpoint.json": {"champion": serving}}),
    }


def usual(count: int, **changed: Any) -> list[dict[str, Any]]:
    return [line(prompt=prompt(i), completion=KINDS[i % 4], prompt_tokens=40 + i % 20, **changed) for i in range(count)]


def report(
    store: TaskStore, tmp_path: Path, rows: Sequence[dict[str, Any]], **monitor: Any
) -> tuple[StageResult, Path]:
    write(traffic_folder(NAME), rows)
    context = stage_context(declared(**monitor), store, tmp_path, **deploy(store))
    return traffic_report(context), context.out


def failed(result: StageResult) -> list[Check]:
    assert result.verdict is not None
    return [check for check in result.verdict.checks if not check.passed]


def test_no_traffic_is_no_alarm(store: TaskStore, tmp_path: Path) -> None:
    result, out = report(store, tmp_path, [])
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.verdict.summary == "no traffic in the last 7 days: nothing to check"
    assert "Too little traffic to check" in (out / "report.html").read_text("utf-8")


def test_usual_traffic_raises_no_alarm(store: TaskStore, tmp_path: Path) -> None:
    result, _ = report(store, tmp_path, usual(400))
    assert result.verdict is not None
    assert result.verdict.passed
    assert not failed(result)
    current = store.current("deployed_endpoint")
    assert current is not None
    assert result.verdict.about == current.content_hash
    assert result.summary["requests"] == 400


def test_too_few_requests_raise_no_alarm_however_bad(store: TaskStore, tmp_path: Path) -> None:
    result, _ = report(store, tmp_path, usual(20, status="invalid", valid=False, seconds=60.0))
    assert result.verdict is not None
    assert result.verdict.passed
    assert [check.name for check in failed(result)] == ["enough traffic"]


@pytest.mark.parametrize(
    ("changed", "alarm", "problem"),
    [
        ({"status": "invalid", "valid": False}, "answers keep the format", "answers break the format, 150 of 300"),
        ({"status": "fallback"}, "answers keep the format", "answers break the format, 150 of 300"),
        ({"seconds": 12.0}, "answers come in time", "answers are slow, 12.00 s"),
        ({"prompt": "x" * 900}, "no drift: length of the prompts (characters)", "drift in the length of the p"),
        ({"completion": "delivery"}, "no drift: kinds of answers", "drift in the kinds of answers"),
    ],
)
def test_each_problem_raises_its_alarm(
    store: TaskStore, tmp_path: Path, changed: dict[str, Any], alarm: str, problem: str
) -> None:
    rows = usual(150) + [{**row, **changed} for row in usual(150)]
    result, out = report(store, tmp_path, rows)
    assert result.verdict is not None
    assert not result.verdict.passed
    assert alarm in [check.name for check in failed(result)]
    assert problem in result.verdict.summary
    assert re.search("<b>Alarm</b>", (out / "report.html").read_text("utf-8"))


def test_a_share_within_chance_is_no_alarm(store: TaskStore, tmp_path: Path) -> None:
    """4 of 60 are 6.7 %, more than 5 %; as many come by chance where 3 % break the format."""
    result, _ = report(store, tmp_path, usual(56) + usual(4, status="invalid", valid=False))
    assert result.verdict is not None
    assert result.verdict.passed
    check = next(c for c in result.verdict.checks if c.name == "answers keep the format")
    assert "may still be chance" in check.observed


def test_failed_requests_are_a_warning_and_no_alarm(store: TaskStore, tmp_path: Path) -> None:
    rows = usual(100) + usual(100, status="error", valid=None)
    result, _ = report(
        store, tmp_path, [{**row, "completion": row["completion"] if row["valid"] else None} for row in rows]
    )
    assert result.verdict is not None
    assert result.verdict.passed
    assert [check.name for check in failed(result)] == ["requests are answered"]


def test_requests_without_an_answer_reach_the_report(store: TaskStore, tmp_path: Path) -> None:
    abandoned = {"status": "abandoned", "valid": None, "completion": None, "queued_seconds": 9.0}
    refused = {"status": "refused", "valid": None, "completion": None, "prompt": None, "prompt_tokens": 0}
    rows = usual(200) + [{**row, **abandoned} for row in usual(60)]
    rows += [{**row, **refused, "code": "busy"} for row in usual(30)]
    rows += [{**row, **refused, "code": "invalid_value"} for row in usual(5)]
    result, out = report(store, tmp_path, rows)
    figures = json.loads((out / "report.json").read_text("utf-8"))
    assert (figures["requests"], figures["abandoned"]) == (260, 60)
    assert figures["refused"] == {"busy": 30, "invalid_value": 5} and figures["queued_p95_seconds"] == 9.0
    (check,) = failed(result)
    assert "90 of 290 requests got no answer: 30 were refused by the full endpoint, 60 were abandoned" in check.observed
    html = (out / "report.html").read_text("utf-8")
    assert "abandoned by the client" in html and "<td>busy</td>" in html


def test_failures_of_the_previous_version_are_not_counted(store: TaskStore, tmp_path: Path) -> None:
    rows = usual(100) + usual(100, version=3, adapter="a0", status="invalid", valid=False)
    result, out = report(store, tmp_path, rows)
    assert result.verdict is not None
    assert result.verdict.passed
    assert result.summary["requests"] == 100
    assert "<td>3</td>" in (out / "report.html").read_text("utf-8")


def test_a_log_without_texts_is_compared_by_tokens(store: TaskStore, tmp_path: Path) -> None:
    rows = [{**row, "prompt": None, "completion": None, "prompt_tokens": 400} for row in usual(200)]
    result, _ = report(store, tmp_path, rows)
    assert "no drift: length of the prompts (tokens)" in [check.name for check in failed(result)]


def test_old_days_are_left_out(store: TaskStore, tmp_path: Path) -> None:
    rows = usual(100, at="2025-12-29T23:00:00.000+00:00") + usual(60, at="2025-12-30T00:00:00.000+00:00")
    assert report(store, tmp_path, rows)[0].summary["requests"] == 60


def test_nothing_deployed_is_no_alarm(store: TaskStore, tmp_path: Path) -> None:
    context = stage_context(declared(), store, tmp_path, **deploy(store, champion=False))
    result = traffic_report(context)
    assert result.verdict is not None
    assert result.verdict.passed


def test_text_of_users_and_models_is_escaped(store: TaskStore, tmp_path: Path) -> None:
    """Kinds of answers are text from the model, on a page that people open."""
    rows = [{**row, "completion": "<script>alert(1)</script>"} for row in usual(200)]
    inputs = deploy(store)
    tuned = [Answer(f"r{i}", "tuned", "<script>alert(1)</script>", 40, 5, 0.5) for i in range(100)]
    inputs["eval_report"] = finished(store, "eval_report", {"answers.jsonl": tuned})
    write(traffic_folder(NAME), rows)
    context = stage_context(declared(), store, tmp_path, **inputs)
    traffic_report(context)
    html = (context.out / "report.html").read_text("utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"(src|href)=.?https?:", html)  # nothing from outside


def test_the_fingerprint_follows_the_logs_of_the_window(store: TaskStore) -> None:
    today = datetime.now(UTC).date().isoformat()
    before = traffic_fingerprint(declared(), store)
    assert traffic_fingerprint(declared(), store) == before
    write(traffic_folder(NAME), [line(at="2020-01-01T00:00:00.000+00:00")])
    assert traffic_fingerprint(declared(), store) == before
    write(traffic_folder(NAME), [line(at=f"{today}T00:00:00.000+00:00")])
    after = traffic_fingerprint(declared(), store)
    assert after != before
    write(traffic_folder(NAME), [line(at=f"{today}T00:00:01.000+00:00")])
    assert traffic_fingerprint(declared(), store) != after
