"""The traffic log is counted by day, status and version."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_pipeline.monitor.traffic_log import files, read, window
from finetune_pipeline_tests.monitor.lines import line, write


def label(answer: str) -> str:
    return answer if answer in ("delivery", "returns") else ""


def test_the_window_ends_today_and_crosses_months() -> None:
    assert window("2026-03-02T10:00:00+00:00", 3) == ["2026-02-28", "2026-03-01", "2026-03-02"]
    assert window("2026-01-05T00:00:00+00:00", 1) == ["2026-01-05"]


def test_only_days_of_the_window_that_exist_are_read(tmp_path: Path) -> None:
    for day in ("2025-12-20", "2026-01-04", "2026-01-05"):
        write(tmp_path, [line(at=f"{day}T08:00:00.000+00:00")])
    (tmp_path / "checks").mkdir()  # with the requests of parity
    logs = files(tmp_path, window("2026-01-05T10:00:00+00:00", 7))
    assert [path.name for path in logs] == ["2026-01-04.jsonl", "2026-01-05.jsonl"]


def test_lines_are_counted_by_status(tmp_path: Path) -> None:
    rows = [
        line(seconds=0.5),
        line(status="invalid", valid=False, completion="???"),
        line(status="fallback", valid=True, completion="returns"),
        line(status="rejected", valid=False, completion="???"),
        line(status="error", valid=None, completion=None, seconds=30.0),
    ]
    traffic = read(write(tmp_path, rows), "a1", label)
    assert (traffic.requests, traffic.checked, traffic.broken) == (5, 4, 3)
    assert traffic.statuses == {"ok": 1, "invalid": 1, "fallback": 1, "rejected": 1, "error": 1}
    assert len(traffic.seconds) == 4  # a failed request has no answer
    assert traffic.kinds == {"delivery": 1}  # a fallback's answer is the base model's
    assert len(traffic.completion_chars) == 3
    assert len(traffic.prompt_chars) == 5
    assert traffic.days == {"2026-01-05": [5, 3]}


def test_another_versions_lines_are_only_counted(tmp_path: Path) -> None:
    rows = [line(), line(version=3, adapter="a0", status="invalid"), line(version=3, adapter="a0")]
    traffic = read(write(tmp_path, rows), "a1", label)
    assert (traffic.requests, traffic.broken) == (1, 0)
    assert traffic.versions == {"4": 1, "3": 2}


def test_a_torn_line_is_counted_and_skipped(tmp_path: Path) -> None:
    [path] = write(tmp_path, [line()])
    path.write_text(path.read_text("utf-8") + "\n" + json.dumps(line())[:40], "utf-8")
    traffic = read([path], "a1", label)
    assert (traffic.requests, traffic.unreadable) == (1, 1)


def test_a_log_without_texts_keeps_its_tokens(tmp_path: Path) -> None:
    traffic = read(write(tmp_path, [line(prompt=None, completion=None)]), "a1", label)
    assert len(traffic.prompt_chars) == len(traffic.completion_chars) == 0
    assert list(traffic.prompt_tokens) == [40]
    assert list(traffic.completion_tokens) == [5]


def test_a_task_without_a_format_has_no_checked_answers(tmp_path: Path) -> None:
    traffic = read(write(tmp_path, [line(valid=None)]), "a1", lambda answer: "")
    assert (traffic.requests, traffic.checked) == (1, 0)
