"""The traffic log: masked lines, one file per day; a full disk loses lines, never responses."""

from __future__ import annotations

import os
import resource
import stat
import time
from pathlib import Path

import pytest
from pytest import MonkeyPatch

from finetune_pipeline.records import read_jsonl
from finetune_pipeline.serve import traffic
from finetune_pipeline.serve.traffic import Line, TrafficLog
from finetune_pipeline.store import traffic_folder


def line(**changes: object) -> Line:
    fields: dict[str, object] = {
        "at": "2026-01-05T10:00:00.123+00:00", "request": "chatcmpl-1", "task": "parcels", "model": "parcels",
        "version": 4, "adapter": "9be0", "status": "ok", "valid": True, "seconds": 0.5, "first_token_seconds": 0.1,
        "prompt_tokens": 10, "completion_tokens": 3, "key": "shop", "stream": False,
        "prompt": "write to anna@example.com", "completion": "delivery",
    }  # fmt: skip
    return Line(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: MonkeyPatch) -> list[int]:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path))
    return []


def test_lines_are_masked_and_written_to_the_file_of_their_day(lost: list[int]) -> None:
    log = TrafficLog(lost.append)
    log.add(line(), is_check=False)
    log.add(line(at="2026-01-06T00:00:00.000+00:00", prompt=None, completion=None), is_check=False)
    log.close()
    first, second = (list(read_jsonl(p)) for p in sorted(traffic_folder("parcels").glob("*.jsonl")))
    assert first[0]["prompt"] == "write to <EMAIL>" and first[0]["version"] == 4
    assert second[0]["prompt"] is None and second[0]["completion"] is None
    assert not lost


def test_close_writes_every_line_however_long_it_takes(lost: list[int], monkeypatch: MonkeyPatch) -> None:
    def slow_append(path: Path, row: dict[str, object]) -> None:
        time.sleep(0.05)
        append(path, row)

    append = traffic.append
    monkeypatch.setattr(traffic, "append", slow_append)
    log = TrafficLog(lost.append)
    for _ in range(20):
        log.add(line(), is_check=False)
    log.close(stalled=0.5)  # the whole takes a second
    (path,) = traffic_folder("parcels").glob("*.jsonl")
    assert len(list(read_jsonl(path))) == 20 and not lost


def test_the_mode_of_an_existing_log_becomes_0600(lost: list[int]) -> None:
    path = traffic_folder("parcels") / "2026-01-05.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("")
    path.chmod(0o644)
    log = TrafficLog(lost.append)
    log.add(line(), is_check=False)
    log.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_checks_are_kept_apart_from_traffic(lost: list[int]) -> None:
    log = TrafficLog(lost.append)
    log.add(line(), is_check=True)
    log.add(line(task=""), is_check=False)
    log.add(line(task="", model=""), is_check=False)
    log.close()
    assert not list(traffic_folder("parcels").glob("*.jsonl"))
    assert len(list(traffic_folder("parcels").glob("checks/*.jsonl"))) == 1
    assert len(list(traffic_folder("_base").glob("*.jsonl"))) == 1
    assert len(list(traffic_folder("_refused").glob("*.jsonl"))) == 1


def test_a_full_disk_loses_one_counted_line(lost: list[int], monkeypatch: MonkeyPatch) -> None:
    log = TrafficLog(lost.append)
    traffic_folder("full").mkdir(parents=True)
    (traffic_folder("full") / "2026-01-05.jsonl").symlink_to("/dev/full")
    log.add(line(task="full"), is_check=False)
    log.add(line(), is_check=False)
    log.close()
    assert lost == [1]
    assert len(list(traffic_folder("parcels").glob("*.jsonl"))) == 1


def test_a_partly_written_line_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    traffic.append(path, {"n": 1})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 4, hard))  # the system takes four more bytes
    try:
        with pytest.raises(OSError, match=os.strerror(28)):
            traffic.append(path, {"n": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


def test_a_full_queue_does_not_block(lost: list[int], monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "MAX_QUEUED_LINES", 2)
    monkeypatch.setattr(traffic, "append", lambda *_: time.sleep(0.2))
    log = TrafficLog(lost.append)
    start = time.perf_counter()
    for _ in range(50):
        log.add(line(), is_check=False)
    assert time.perf_counter() - start < 0.2
    assert sum(lost) >= 46
    log.close()
