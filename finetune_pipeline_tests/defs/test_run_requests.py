"""When a sensor requests a run, as values: no Dagster."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from finetune_pipeline.defs.run_requests import ATTEMPTS, Cursor, InputState, LastRun, decide

NOW = datetime(2026, 1, 5, 10, tzinfo=UTC)
A, B = InputState("a", True, ["raw_examples"]), InputState("b", True, ["raw_examples"])
DONE = LastRun("0123456789", "done", NOW)
FAILED = LastRun("0123456789", "failed", NOW)


def test_a_change_is_requested_once() -> None:
    first = decide(Cursor(), A, None, NOW)
    assert first.run
    for state in (A, B):  # what changes during a run is requested after it
        tick = decide(first.cursor, state, LastRun("r", "active"), NOW)
        assert not tick.run and tick.cursor == first.cursor and "in progress" in tick.reason
    assert not decide(first.cursor, replace(A, changed=False, stale=()), DONE, NOW).run


def test_there_and_back_are_three_changes_with_keys_of_their_own() -> None:
    cursor = Cursor()
    keys: list[str] = []
    for minute, state in enumerate((A, B, A)):
        tick = decide(cursor, state, DONE if keys else None, NOW + timedelta(minutes=minute))
        assert tick.run
        cursor = tick.cursor
        keys.append(cursor.run_key)
    assert len(set(keys)) == 3


def test_what_failed_and_was_restored_counts_as_new_when_it_comes_back() -> None:
    tried = decide(Cursor(), B, None, NOW).cursor
    restored = decide(tried, replace(A, changed=False), FAILED, NOW)
    assert not restored.run
    again = decide(restored.cursor, B, None, NOW + timedelta(minutes=1))
    assert again.run and again.cursor.run_key != tried.run_key


def test_a_failed_run_is_requested_again_later_each_time_and_not_for_ever() -> None:
    cursor, now, waits = decide(Cursor(), A, None, NOW).cursor, NOW, []
    for _ in range(50):
        tick = decide(cursor, replace(A, changed=False), replace(FAILED, ended=NOW), now)
        if tick.run:
            waits.append(now - NOW)
            cursor = tick.cursor
        now += timedelta(minutes=5)
    assert waits == [timedelta(minutes=5), timedelta(minutes=20)]
    assert cursor.attempt == ATTEMPTS
    assert "start the job by hand" in tick.reason


def test_a_run_that_failed_is_not_requested_when_its_work_is_done_since() -> None:
    cursor = decide(Cursor(), A, None, NOW).cursor
    assert not decide(cursor, InputState("a", False), FAILED, NOW + timedelta(days=1)).run


@pytest.mark.parametrize(
    ("state", "last", "reason"),
    [
        (replace(A, changed=False, gate_summary="91 % of the rows"), FAILED, "91 % of the rows"),
        (A, replace(FAILED, status="canceled"), "was canceled; start the job by hand"),
    ],
)
def test_a_refusal_and_a_persons_stop_are_kept(state: InputState, last: LastRun, reason: str) -> None:
    cursor = decide(Cursor(), A, None, NOW).cursor
    tick = decide(cursor, state, last, NOW + timedelta(days=1))
    assert not tick.run
    assert reason in tick.reason


def test_a_run_that_was_never_started_is_requested_under_the_same_key() -> None:
    cursor = decide(Cursor(), A, None, NOW).cursor
    tick = decide(cursor, A, None, NOW + timedelta(minutes=1))
    assert tick.run and tick.cursor == cursor


@pytest.mark.parametrize("cursor", [None, "", "{", '{"x": 1}', "2026-01-05T10:00:00+00:00", "[1]", "3"])
def test_a_cursor_of_another_kind_counts_as_none(cursor: str | None) -> None:
    assert Cursor.parse(cursor) == Cursor()
