"""The status of a task, and the values of its page."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.desk import labels, ledger_rows, task_view
from finetune_pipeline.desk.task_status import STEPS, status_of
from finetune_pipeline.errors import StorageError
from finetune_pipeline.graph import BY_NAME
from finetune_pipeline.records import Check
from finetune_pipeline.store import STAGE_OF, STAGES

from .sample_tasks import approve_all, declare, make

UNTIL = "registered_model"


def states(name: str, person: str = "anna") -> dict[str, str]:
    return {step.name: step.state for step in status_of(name, person).steps}


def test_the_steps_are_the_stages() -> None:
    assert list(STEPS) == [stage for stage in STAGES if stage != "models"]
    assert {asset for assets in STEPS.values() for asset in assets} == set(STAGE_OF)


def test_a_task_without_artifacts(place: Path) -> None:
    declare("new")
    assert set(states("new").values()) == {"missing"}
    assert status_of("new", "anna").todo == ()


def test_a_sample_waits_for_this_user(place: Path) -> None:
    make("parcels")
    assert states("parcels")["quality"] == "fresh"
    assert states("parcels")["review"] == "waiting"
    (item,) = status_of("parcels", "anna").todo
    assert (item.title, item.page) == ("12 rows to review", "/review")


def test_a_finished_part_waits_for_other_reviewers(place: Path) -> None:
    _, store = make("parcels", sections={"review": {"min_rows": 12, "reviewers": 2}})
    approve_all(store, "anna")
    assert states("parcels", "anna")["review"] == "others"
    assert states("parcels", "bert")["review"] == "waiting"
    assert status_of("parcels", "anna").todo == ()


def test_a_complete_review_is_ready_for_the_next_run(place: Path) -> None:
    _, store = make("parcels")
    approve_all(store)
    assert states("parcels")["review"] == "ready"
    assert [item.title for item in status_of("parcels", "bert").todo] == ["The review is complete"]


def test_a_failed_gate_is_shown_with_its_reason(place: Path) -> None:
    make("parcels", until="data_quality", passed={"data_quality": False})
    assert states("parcels")["quality"] == "failed"
    (item,) = status_of("parcels", "anna").todo
    assert item.page == "/quality" and "91.2" in item.text and "`" not in item.text


def test_changed_sources_make_every_stage_stale(place: Path) -> None:
    make("parcels", until=UNTIL)
    assert set(states("parcels").values()) == {"fresh", "missing"}
    (place / "data" / "parcels" / "raw" / "shop.csv").write_text("text,answer\nhello,there\n")
    assert states("parcels")["clean"] == "stale"
    assert states("parcels")["train"] == "stale"


def test_an_invalid_declaration_is_shown_not_raised(place: Path) -> None:
    declare("broken", {"answer": {"format": "jsn"}, "clen": {}})
    status = status_of("broken", "anna")
    assert status.problem is not None and len(status.problems) == 2


def test_a_missing_source_is_named(place: Path) -> None:
    make("parcels", until=UNTIL)
    (place / "data" / "parcels" / "raw" / "shop.csv").unlink()
    item = status_of("parcels", "anna").todo[0]
    assert (item.tone, item.title) == ("bad", "A source is missing")
    assert "raw/shop.csv, which does not exist" in item.text


def test_each_asset_of_the_counts_is_made_from_the_one_before() -> None:
    for before, asset in pairwise(ledger_rows.ROW_ASSETS):
        assert before in BY_NAME[asset].needs


def test_counts_reconcile_over_all_stages(place: Path) -> None:
    _, store = make("parcels", until=UNTIL)
    counts = task_view.counts(ledger_rows.chain(store))
    assert counts is not None and counts.reconciles
    assert (counts.read, counts.kept, counts.dropped_rows, counts.fixed) == (145, 119, 26, 14)
    assert dict(counts.splits) == {"train": 90, "validation": 10, "test": 19}
    assert task_view.by_reason(counts.dropped)[0] == ("near-duplicate", 8)


def test_counts_end_before_an_artifact_made_from_older_rows(place: Path) -> None:
    _, store = make("parcels", until=UNTIL)
    with store.scratch("clean_examples") as out:
        for name in ("examples.jsonl", "drops.jsonl", "fixes.jsonl"):
            (out / name).write_text("")
        raw = store.current("raw_examples")
        assert raw is not None
        store.commit("clean_examples", "newer", out, {"inputs": {"raw_examples": raw.content_hash}, "summary": {}})
    chain = ledger_rows.chain(store)
    assert list(chain) == ["raw_examples", "clean_examples"]
    counts = task_view.counts(chain)
    assert counts is not None and not counts.reconciles


def test_checks_have_failures_first_and_plain_names() -> None:
    rows = task_view.check_rows(
        [
            Check("no overlap", True, "no pair", "none"),
            Check("completion_valid", False, "every answer is valid", "90 %"),
            Check("test rows", False, "at least 30", "19", "warning"),
        ]
    )
    assert [(row.title, row.expected, row.tone) for row in rows] == [
        ("Every answer is valid", "", "bad"),
        ("Test rows", "at least 30", "warning"),
        ("No overlap", "no pair", "good"),
    ]


@pytest.mark.parametrize(
    ("name", "technical"),
    [
        ("row_ok", True),
        ("declared:0:expect_table_row_count_to_be_between", True),
        ("declared:1:expect_prices", True),
        ("unreadable: shop", True),
        ("no drift: kinds of answers", False),
        ("no drift: length of the prompts (tokens)", False),
        ("better than few_shot_retrieved", False),
    ],
)
def test_only_names_of_rules_and_declared_expectations_are_replaced(name: str, technical: bool) -> None:
    (row,) = task_view.check_rows([Check(name, True, "stability index at most 0.20", "0.05")])
    assert (row.expected == "") is technical
    assert (row.title == "Stability index at most 0.20") is technical


def test_a_check_against_a_variant_has_its_title() -> None:
    names = ("better than few_shot_retrieved", "no worse than classical", "no worse than live version 3")
    rows = task_view.check_rows([Check(name, True, "", "") for name in names])
    assert [row.title for row in rows] == [
        "Better than base model, similar examples",
        "No worse than classical model",
        "No worse than live version 3",
    ]


def test_only_shares_are_shown_in_percent() -> None:
    summary = {"parity": 0.985, "invalid_share": 0.012, "validation_loss": 0.5, "p95_seconds": 1.4, "requests": 1240}
    assert [text for _, text in task_view.facts(summary)] == ["98.5 %", "1.2 %", "0.5", "1.4", "1,240"]


def test_the_hint_of_a_failed_gate_names_a_report_only_where_there_is_one() -> None:
    with_report = {asset for asset, (_, hint) in labels.FAILED_GATES.items() if "report" in hint}
    assert with_report <= {*task_view.REPORTS}
    assert labels.FAILED_GATES["deployed_endpoint"][1] == "No traffic was moved. The checks below give the reason."


def test_comparison_ends_with_the_tuned_model() -> None:
    prompted = {"rows": 100, "exact": 0.5, "valid": 0.9, "interval": [0.4, 0.6]}
    tuned = {"rows": 100, "exact": 0.4, "valid": 1.0, "interval": [0.3, 0.5]}
    report: Any = {"variants": {"tuned": tuned, "few_shot": prompted}, "best_prompted": "few_shot"}
    rows = task_view.comparison(report)
    assert [(row.name, row.title, row.best_prompted) for row in rows] == [
        ("few_shot", "Base model, fixed examples", True),
        ("tuned", "Tuned model", False),
    ]
    assert [(row.low, row.high) for row in rows] == [(0.4, 0.6), (0.3, 0.5)]
    del tuned["exact"]
    with pytest.raises(StorageError, match="exact"):
        task_view.comparison(report)
