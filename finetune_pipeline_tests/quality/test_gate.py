"""The gate as a whole: the table, Great Expectations, the verdict."""

from __future__ import annotations

import pytest

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DataError
from finetune_pipeline.quality import gate, suite
from finetune_pipeline.quality.losses import Losses, Reading
from finetune_pipeline.quality.table import frame_of
from finetune_pipeline.records import Verdict
from finetune_pipeline_tests.quality.conftest import check, declare, row, rows, verdict


def failed(given: Verdict) -> set[str]:
    return {check.name for check in given.checks if not check.passed}


def test_exactly_95_of_100_rows_pass(task: Task) -> None:
    given = verdict(rows(100, bad=5), task)
    assert given.passed
    assert given.figures["share"] == 0.95
    assert given.summary == "95 % of 100 rows pass every rule, 95 % required"


def test_94_of_100_rows_do_not_pass(task: Task) -> None:
    given = verdict(rows(100, bad=6), task)
    assert not given.passed
    assert failed(given) == {"row_ok", "completion_valid"}
    assert given.figures["failing"] == [f"row{n}" for n in range(6)]


def test_two_rules_that_fail_on_different_rows_add_up(task: Task) -> None:
    mixed = [*rows(95, bad=5), *(row(n, prompt=f"write to mr{n}@example.org") for n in range(95, 100))]
    given = verdict(mixed, task)
    assert failed(given) == {"row_ok"}  # each rule alone holds for 95 of 100 rows
    assert not given.passed
    assert given.figures["right"] == 90


def test_an_empty_table_does_not_pass(task: Task) -> None:
    given = verdict([], task)
    assert not given.passed
    assert "enough_rows" in failed(given)


def test_one_row_less_than_the_minimum_does_not_pass(task: Task) -> None:
    assert failed(verdict(rows(9), task)) == {"enough_rows"}


def test_nulls_fail_the_gate(task: Task) -> None:
    frame = frame_of(rows(100), task)
    for column in ("prompt", "completion", "turns", "free_texts"):
        nulls = frame.assign(**{column: [None] * 6 + frame[column].tolist()[6:]})
        checked = suite.run(nulls, task, Losses.of(task, 100, 0, {}), "test")
        assert checked.row_ok.tolist() == [False] * 6 + [True] * 94, column
        given = gate.evaluate_quality(checked, nulls, Losses.of(task, 100, 0, {}), task.quality, "c0ffee")
        assert not given.passed and "row_ok" in failed(given)


def test_an_id_used_twice_does_not_pass(task: Task) -> None:
    assert failed(verdict([*rows(100), row(7, prompt="another prompt")], task)) == {"id_unique"}


@pytest.mark.parametrize(("dropped", "passed"), [(100, True), (101, False)])
def test_more_than_half_dropped_means_that_the_source_is_broken(task: Task, dropped: int, passed: bool) -> None:
    given = verdict(rows(100), task, dropped)
    assert given.passed is passed
    assert failed(given) == (set() if passed else {"share_dropped"})


@pytest.mark.parametrize(("unreadable", "passed"), [(100, True), (101, False)])
def test_rows_lost_in_reading_count_like_those_lost_in_cleaning(task: Task, unreadable: int, passed: bool) -> None:
    given = verdict(rows(100), task, 0, {"tickets": Reading(100 + unreadable, unreadable)})
    assert given.passed is passed
    assert failed(given) == (set() if passed else {"share_dropped", "unreadable: tickets"})
    both = verdict(rows(100), task, 60, {"tickets": Reading(210, 50)})
    assert failed(both) == {"share_dropped"}, "110 of 210 rows are lost, though neither stage lost half of them"


def test_a_source_that_cannot_be_read_fails_though_the_rest_is_fine() -> None:
    sources = [{"path": "raw/tickets.csv"}, {"path": "raw/chat.jsonl"}]
    read = {"tickets": Reading(100, 0), "chat": Reading(30, 16)}
    given = verdict(rows(114), declare(sources=sources), 0, read)
    assert failed(given) == {"unreadable: chat"}
    assert given.summary.endswith("not met: at most 50 % of the rows of chat could not be read: 53.4 %")
    assert given.figures["unreadable"] == {"tickets": 0.0, "chat": pytest.approx(16 / 30)}
    known = [sources[0], {**sources[1], "max_unreadable": 1}]
    assert verdict(rows(114), declare(sources=known), 0, read).passed


def test_the_declared_share_is_the_one_that_counts() -> None:
    assert verdict(rows(100, bad=6), declare(quality={"min_rows": 10, "mostly": 0.94})).passed


def test_a_missing_column_is_an_error_and_no_bad_data(task: Task) -> None:
    frame = frame_of(rows(20), task).drop(columns="completion")
    with pytest.raises(DataError, match=r'completion_valid .*column "completion".* does not exist'):
        suite.run(frame, task, Losses.of(task, 20, 0, {}), "test")


def test_each_check_has_expectation_and_observation(task: Task) -> None:
    given = verdict(rows(100, bad=6), task, dropped=25)
    texts = {check.name: f"{check.expected}: {check.observed}" for check in given.checks}
    assert texts["completion_valid"] == (
        "the answer is valid JSON of the declared schema, in at least 95 % of the rows: 94 % of 100 rows"
    )
    assert texts["enough_rows"] == "at least 10 rows are left: 100 rows"
    assert texts["share_dropped"] == "reading and cleaning dropped at most 50 % of all rows: 20 %"
    assert given.about == "c0ffee"
    assert Verdict.from_json(given.to_json()) == given


def test_failing_rows_are_named_with_the_rules_they_break(task: Task) -> None:
    examples = [*rows(3), row(3, prompt="a<br>b", completion="no")]
    assert gate.failing(check(examples, task), frame_of(examples, task)) == [
        gate.FailingRow("row3", "t.csv:3", ("completion_valid", "no_html"))
    ]


def test_two_tasks_in_one_process_keep_their_own_rules(capfd: pytest.CaptureFixture[str]) -> None:
    labels = declare(answer={"format": "json", "schema": {"type": "object", "required": ["other"]}})
    assert verdict(rows(20), declare()).passed
    assert failed(verdict(rows(20), labels)) == {"row_ok", "completion_valid"}
    assert verdict(rows(20), declare()).passed
    assert capfd.readouterr().err == ""
