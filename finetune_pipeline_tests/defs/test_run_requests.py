"""When a sensor offers a run, as values: no Dagster."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from finetune_pipeline.defs.offers import ATTEMPTS, LastRun, Memory, Wanted, decide

NOW = datetime(2026, 1, 5, 10, tzinfo=UTC)
A, B = Wanted("a", True, ["raw_examples"]), Wanted("b", True, ["raw_examples"])
DONE = LastRun("0123456789", "done", NOW)
FAILED = LastRun("0123456789", "failed", NOW)


def test_a_change_is_offered_once() -> None:
    first = decide(Memory(), A, None, NOW)
    assert first.run
    for wanted in (A, B):  # what changes during a run is offered after it
        offer = decide(first.memory, wanted, LastRun("r", "active"), NOW)
        assert not offer.run and offer.memory == first.memory and "under way" in offer.reason
    assert not decide(first.memory, replace(A, changed=False, unmade=()), DONE, NOW).run


def test_there_and_back_are_three_changes_with_keys_of_their_own() -> None:
    memory = Memory()
    keys: list[str] = []
    for minute, wanted in enumerate((A, B, A)):
        offer = decide(memory, wanted, DONE if keys else None, NOW + timedelta(minutes=minute))
        assert offer.run
        memory = offer.memory
        keys.append(memory.run_key)
    assert len(set(keys)) == 3


def test_what_failed_and_was_restored_counts_as_new_when_it_comes_back() -> None:
    tried = decide(Memory(), B, None, NOW).memory
    restored = decide(tried, replace(A, changed=False), FAILED, NOW)
    assert not restored.run
    again = decide(restored.memory, B, None, NOW + timedelta(minutes=1))
    assert again.run and again.memory.run_key != tried.run_key


def test_a_failed_run_is_offered_again_later_each_time_and_not_for_ever() -> None:
    memory, now, waits = decide(Memory(), A, None, NOW).memory, NOW, []
    for _ in range(50):
        offer = decide(memory, replace(A, changed=False), replace(FAILED, ended=NOW), now)
        if offer.run:
            waits.append(now - NOW)
            memory = offer.memory
        now += timedelta(minutes=5)
    assert waits == [timedelta(minutes=5), timedelta(minutes=20)]
    assert memory.attempt == ATTEMPTS
    assert "start the job by hand" in offer.reason


def test_a_run_that_failed_is_not_offered_when_its_work_is_done_since() -> None:
    memory = decide(Memory(), A, None, NOW).memory
    assert not decide(memory, Wanted("a", False), FAILED, NOW + timedelta(days=1)).run


@pytest.mark.parametrize(
    ("wanted", "last", "said"),
    [
        (replace(A, changed=False, refused="91 % of the rows"), FAILED, "91 % of the rows"),
        (A, replace(FAILED, status="canceled"), "was canceled; start the job by hand"),
    ],
)
def test_a_refusal_and_a_persons_stop_are_kept(wanted: Wanted, last: LastRun, said: str) -> None:
    memory = decide(Memory(), A, None, NOW).memory
    offer = decide(memory, wanted, last, NOW + timedelta(days=1))
    assert not offer.run
    assert said in offer.reason


def test_a_run_that_was_never_started_is_offered_under_the_same_key() -> None:
    memory = decide(Memory(), A, None, NOW).memory
    offer = decide(memory, A, None, NOW + timedelta(minutes=1))
    assert offer.run and offer.memory == memory


@pytest.mark.parametrize("cursor", [None, "", "{", '{"x": 1}', "2026-01-05T10:00:00+00:00", "[1]", "3"])
def test_a_cursor_of_another_kind_counts_as_none(cursor: str | None) -> None:
    assert Memory.parse(cursor) == Memory()
