"""The gate's verdict at its boundaries, exact bounds, and advice about the rows that are needed."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Review, Verdict
from finetune_pipeline.review.bounds import RowsNeeded, round_confidence, rows_needed
from finetune_pipeline.review.gate import evaluate_review
from finetune_pipeline.review.rounds import GateResult, Round
from finetune_pipeline.statistics.proportion import lower_bound
from finetune_pipeline_tests.artifacts import example

RULES = ReviewRules()


def reviewed(
    right: int, total: int, reviewer: str = "anna", wrong: str = "reject"
) -> tuple[list[Example], list[Review]]:
    rows = [example(f"r{i:03}", f"prompt {i}", "completion") for i in range(total)]
    decisions = ["approve"] * right + [wrong] * (total - right)
    reviews = [
        Review(row.id, row.content_hash, reviewer, d, "2026-01-05", "new" if d == "edit" else None)  # type: ignore[arg-type]
        for row, d in zip(rows, decisions, strict=True)
    ]
    return rows, reviews


def gate(
    right: int, total: int, rules: ReviewRules = RULES, wrong: str = "reject", review_round: Round | None = None
) -> Verdict:
    return evaluate_review(*reviewed(right, total, wrong=wrong), rules, "hash", review_round)


def figures(verdict: Verdict) -> Any:
    return verdict.figures


@pytest.mark.parametrize(
    ("right", "total", "passed"),
    [
        (19, 20, True),
        (18, 20, False),
        (20, 20, True),
        (57, 60, True),
        (56, 60, False),
        (95, 100, True),
        (94, 100, False),
    ],
)
def test_the_observed_share_decides_at_an_exact_boundary(right: int, total: int, passed: bool) -> None:
    assert gate(right, total).passed is passed


@pytest.mark.parametrize("wrong", ["reject", "edit"])
def test_edited_and_rejected_rows_are_not_right(wrong: str) -> None:
    assert gate(18, 20, wrong=wrong).figures["right"] == 18


def test_an_edit_that_changes_nothing_is_an_approval() -> None:
    rows, reviews = reviewed(19, 20)
    same = Review(rows[19].id, rows[19].content_hash, "anna", "edit", "2026-01-05", rows[19].completion)
    assert evaluate_review(rows, [*reviews[:19], same], RULES, "hash").figures["right"] == 20


def test_the_boundary_is_that_of_whole_numbers_up_to_two_hundred_rows() -> None:
    """95 % of n as a fraction, 20 k >= 19 n, has no rounding; the gate must agree with it everywhere."""
    for n in range(1, 201):
        for k in (19 * n // 20, -(-19 * n // 20)):
            assert (k / n >= RULES.min_approved) is (20 * k >= 19 * n), (k, n)


def test_the_lower_bound_of_57_of_60_rows() -> None:
    assert lower_bound(57, 60, 0.95) == pytest.approx(0.8758, abs=1e-4)
    assert gate(57, 60).figures["lower_bound"] == pytest.approx(0.8608, abs=1e-4)


def test_with_require_lower_bound_the_bound_decides() -> None:
    strict = ReviewRules(require_lower_bound=True)
    assert not gate(20, 20, strict).passed
    assert not gate(71, 71, strict).passed
    assert gate(72, 72, strict).passed, "0.95 ** 72 < 0.025 < 0.95 ** 71: the first analysis spends half of the 5 %"


def test_every_further_analysis_needs_more_rows() -> None:
    strict = ReviewRules(require_lower_bound=True)
    needed = [rows_needed(1.0, strict, analysis).none_wrong for analysis in (1, 2, 3, 4)]
    assert needed == [72, 86, 99, 113]
    assert gate(72, 72, strict, review_round=Round(1, 1)).passed
    assert not gate(72, 72, strict, review_round=Round(2, 2)).passed


def test_the_errors_of_all_analyses_together_keep_the_declared_confidence() -> None:
    errors = [1 - round_confidence(0.95, analysis) for analysis in range(1, 60)]
    assert sum(errors) <= 0.05 + 1e-12
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("share", "analysis"), [(1.0, 1), (1.0, 3), (0.98, 1), (0.97, 2)])
def test_the_rows_needed_are_the_fewest_that_reach_the_bound(share: float, analysis: int) -> None:
    confidence, advice = round_confidence(0.95, analysis), rows_needed(share, RULES, analysis)
    for needed, right in ((advice.none_wrong, 1.0), (advice.same_share, share)):
        assert needed is not None
        assert lower_bound(right * needed, needed, confidence) >= 0.95
        assert lower_bound(right * (needed - 1), needed - 1, confidence) < 0.95


def test_rows_needed_at_the_observed_share_exist_only_above_the_threshold() -> None:
    assert rows_needed(0.95, RULES, 1).same_share is None
    assert rows_needed(0.5, ReviewRules(min_approved=1.0), 1) == RowsNeeded(None, None)


def test_the_summary_advises_how_many_rows_are_needed_and_whether_there_are_enough() -> None:
    rows, reviews = reviewed(20, 20)
    strict = ReviewRules(require_lower_bound=True)
    summary = evaluate_review(rows, reviews, RULES, "hash", Round(population=900)).summary
    assert "a round of 72 rows with none wrong would show it" in summary
    failed = evaluate_review(rows, reviews, strict, "hash", Round(population=900))
    assert "round 2 needs 86 fresh rows with none wrong to show it" in failed.summary
    assert failed.figures["fresh_rows_none_wrong"] == 86
    few = evaluate_review(rows, reviews, strict, "hash", Round(population=30))
    assert "and 10 are left that nobody has reviewed" in few.summary
    everything = evaluate_review(rows, reviews, strict, "hash", Round(population=20))
    assert everything.passed, "where every row was reviewed nothing is estimated"
    assert not evaluate_review(rows, reviews[:-1], strict, "hash", Round(population=20)).passed


def test_the_verdict_names_its_round() -> None:
    verdict = gate(57, 60, review_round=Round(3, 2))
    assert verdict.summary.startswith("round 3: 57 of 60 fresh rows are right (95 %)")
    assert verdict.figures["round"] == 3
    assert "in round 3" in verdict.checks[1].observed
    assert verdict.checks[2].name == "lower bound of that share"
    assert "at 98.75 % confidence (95 % over all rounds)" in verdict.checks[2].expected


def test_rows_that_were_removed_after_they_were_drawn_count_as_wrong() -> None:
    verdict = gate(57, 57, review_round=Round(gone=4, population=500))
    assert not verdict.passed
    assert (verdict.figures["rows"], verdict.figures["right"], verdict.figures["gone"]) == (61, 57, 4)
    assert "4 drawn and no longer in the data, which count as wrong" in verdict.checks[1].observed


def test_verdicts_changed_after_the_gate_failed_are_a_warning() -> None:
    rows, reviews = reviewed(20, 20)
    failed = GateResult(False, 18, 20, "hash", "rules", "2026-01-04T10:00:00+00:00")
    verdict = evaluate_review(rows, reviews, RULES, "hash", Round(), [failed])
    assert verdict.passed
    (changed,) = [check for check in verdict.checks if not check.passed and "unchanged" in check.name]
    assert (changed.expected, changed.observed) == (
        "failed with 18 of 20 rows right on 2026-01-04",
        "20 of 20 verdicts are later",
    )


def test_wrong_rows_are_named() -> None:
    verdict = gate(18, 20)
    assert [row["id"] for row in figures(verdict)["wrong"]] == ["r018", "r019"]
    assert "r018 (test.csv:r018)" in verdict.checks[1].observed


def test_a_row_without_its_verdict_fails_the_gate() -> None:
    rows, reviews = reviewed(20, 20)
    verdict = evaluate_review(rows, reviews[:-1], RULES, "hash")
    assert not verdict.passed
    assert verdict.figures["rows"] == 19


def test_without_reviewed_rows_the_gate_fails() -> None:
    rows, _ = reviewed(20, 20)
    assert not evaluate_review(rows, [], ReviewRules(min_approved=0.0), "hash").passed
    assert not evaluate_review([], [], RULES, "hash").passed


def test_two_reviewers_need_a_majority_and_their_agreement_is_measured() -> None:
    rows, first = reviewed(18, 20)
    _, second = reviewed(19, 20, "bob")
    verdict = evaluate_review(rows, [*first, *second], ReviewRules(reviewers=2), "hash")
    assert verdict.figures["right"] == 18, "a tie is not right"
    (pair,) = figures(verdict)["agreement"]
    assert pair["reviewers"] == ["anna", "bob"]
    assert pair["agreement"] == 0.95
    expected = (0.95 - (0.9 * 0.95 + 0.1 * 0.05)) / (1 - (0.9 * 0.95 + 0.1 * 0.05))
    assert pair["kappa"] == pytest.approx(expected)


def test_kappa_is_none_where_it_is_undefined() -> None:
    rows, first = reviewed(20, 20)
    _, second = reviewed(20, 20, "bob")
    (pair,) = figures(evaluate_review(rows, [*first, *second], ReviewRules(reviewers=2), "hash"))["agreement"]
    assert pair["kappa"] is None


def test_recorded_verdicts_are_counted_in_the_summary() -> None:
    rows, reviews = reviewed(20, 20)
    recorded = [Review(r.id, r.content_hash, r.reviewer, r.decision, r.at, recorded=True) for r in reviews[:15]]
    verdict = evaluate_review(rows, [*recorded, *reviews[15:]], RULES, "hash")
    assert verdict.figures["recorded"] == 15
    assert "15 of 20 verdicts are recorded" in verdict.summary
