"""The gate's arithmetic: boundary cases, exact bounds against scipy, advice that is true when followed."""

from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import binomtest

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example, Review, Verdict
from finetune_pipeline.review.bounds import fresh_rows, lower_bound, round_confidence
from finetune_pipeline.review.gate import evaluate_review
from finetune_pipeline.review.rounds import Decision, Round
from finetune_pipeline_tests.artifacts import example

RULES = ReviewRules()


def reviewed(
    right: int, total: int, reviewer: str = "anna", wrong: str = "reject"
) -> tuple[list[Example], list[Review]]:
    rows = [example(f"r{i:03}", f"question {i}", "answer") for i in range(total)]
    decisions = ["approve"] * right + [wrong] * (total - right)
    reviews = [
        Review(row.id, row.content_hash, reviewer, d, "2026-01-05", "new" if d == "edit" else None)  # type: ignore[arg-type]
        for row, d in zip(rows, decisions, strict=True)
    ]
    return rows, reviews


def gate(
    right: int, total: int, rules: ReviewRules = RULES, wrong: str = "reject", drawn: Round | None = None
) -> Verdict:
    return evaluate_review(*reviewed(right, total, wrong=wrong), rules, "hash", drawn)


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
def test_the_observed_share_decides_and_its_boundary_is_exact(right: int, total: int, passed: bool) -> None:
    assert gate(right, total).passed is passed


@pytest.mark.parametrize("wrong", ["reject", "edit"])
def test_edited_and_rejected_rows_were_not_right(wrong: str) -> None:
    assert gate(18, 20, wrong=wrong).figures["right"] == 18


def test_an_edit_that_changes_nothing_is_an_approval() -> None:
    rows, reviews = reviewed(19, 20)
    same = Review(rows[19].id, rows[19].content_hash, "anna", "edit", "2026-01-05", rows[19].completion)
    assert evaluate_review(rows, [*reviews[:19], same], RULES, "hash").figures["right"] == 20


def test_every_boundary_up_to_two_hundred_rows_is_that_of_whole_numbers() -> None:
    """95 % of n as a fraction, 20 k >= 19 n, has no rounding; the gate must agree with it everywhere."""
    for n in range(1, 201):
        for k in (19 * n // 20, -(-19 * n // 20)):
            assert (k / n >= RULES.min_approved) is (20 * k >= 19 * n), (k, n)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_lower_bound_is_scipys(confidence: float) -> None:
    for n in (1, 7, 20, 60, 500):
        for k in {0, 1, n // 2, n - 1, n}:
            expected = binomtest(k, n, alternative="greater").proportion_ci(confidence, method="exact").low
            assert lower_bound(k, n, confidence) == pytest.approx(expected, abs=1e-12), (k, n)


def test_the_known_case() -> None:
    assert lower_bound(57, 60, 0.95) == pytest.approx(0.8758, abs=1e-4)
    assert gate(57, 60).figures["lower_bound"] == pytest.approx(0.8608, abs=1e-4)


def test_with_require_bound_the_bound_decides() -> None:
    strict = ReviewRules(require_lower_bound=True)
    assert not gate(20, 20, strict).passed
    assert not gate(71, 71, strict).passed
    assert gate(72, 72, strict).passed, "0.95 ** 72 < 0.025 < 0.95 ** 71: the first round spends half of the 5 %"


def test_every_round_has_to_show_more() -> None:
    strict = ReviewRules(require_lower_bound=True)
    least = [fresh_rows(1.0, strict, look)["none_wrong"] for look in (1, 2, 3, 4)]
    assert least == [72, 86, 99, 113]
    assert gate(72, 72, strict, drawn=Round(1, 1)).passed
    assert not gate(72, 72, strict, drawn=Round(2, 2)).passed


def test_the_errors_of_all_rounds_together_keep_the_declared_confidence() -> None:
    errors = [1 - round_confidence(0.95, look) for look in range(1, 60)]
    assert sum(errors) <= 0.05 + 1e-12
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(("share", "look"), [(1.0, 1), (1.0, 3), (0.98, 1), (0.97, 2)])
def test_the_advice_is_true_when_it_is_followed(share: float, look: int) -> None:
    confidence = round_confidence(0.95, look)
    for name, right in (("none_wrong", 1.0), ("same_share", share)):
        needed = fresh_rows(share, RULES, look)[name]
        assert needed is not None
        assert lower_bound(right * needed, needed, confidence) >= 0.95
        assert lower_bound(right * (needed - 1), needed - 1, confidence) < 0.95


def test_advice_at_the_observed_share_exists_only_above_the_threshold() -> None:
    assert fresh_rows(0.95, RULES, 1)["same_share"] is None
    assert fresh_rows(0.5, ReviewRules(min_approved=1.0), 1) == {"none_wrong": None, "same_share": None}


def test_the_advice_is_said_and_bounded_by_the_rows_there_are() -> None:
    rows, reviews = reviewed(20, 20)
    strict = ReviewRules(require_lower_bound=True)
    said = evaluate_review(rows, reviews, RULES, "hash", Round(population=900)).summary
    assert "a round of 72 rows with none wrong would show it" in said
    refused = evaluate_review(rows, reviews, strict, "hash", Round(population=900))
    assert "round 2 needs 86 fresh rows with none wrong to show it" in refused.summary
    assert refused.figures["fresh_rows_none_wrong"] == 86
    few = evaluate_review(rows, reviews, strict, "hash", Round(population=30))
    assert "and 10 are left that nobody has reviewed" in few.summary
    everything = evaluate_review(rows, reviews, strict, "hash", Round(population=20))
    assert everything.passed, "where every row was seen nothing is inferred"
    assert not evaluate_review(rows, reviews[:-1], strict, "hash", Round(population=20)).passed


def test_the_verdict_says_which_round_it_is() -> None:
    verdict = gate(57, 60, drawn=Round(3, 2))
    assert verdict.summary.startswith("round 3: 57 of 60 fresh rows are right (95.0%)")
    assert verdict.figures["round"] == 3
    assert "in round 3" in verdict.checks[1].observed
    assert verdict.checks[2].name == "lower bound of that share"
    assert "at 98.75% confidence (95% over all rounds)" in verdict.checks[2].expected


def test_rows_that_left_after_they_were_drawn_count_as_wrong() -> None:
    verdict = gate(57, 57, drawn=Round(gone=4, population=500))
    assert not verdict.passed
    assert (verdict.figures["rows"], verdict.figures["right"], verdict.figures["gone"]) == (61, 57, 4)
    assert "4 drawn and no longer in the data, which count as wrong" in verdict.checks[1].observed


def test_verdicts_that_were_changed_after_a_refusal_are_told() -> None:
    rows, reviews = reviewed(20, 20)
    refused = Decision(False, 18, 20, "hash", "rules", "2026-01-04T10:00:00+00:00")
    verdict = evaluate_review(rows, reviews, RULES, "hash", Round(), [refused])
    assert verdict.passed
    (told,) = [check for check in verdict.checks if not check.passed and "refused" in check.name]
    assert (told.expected, told.observed) == (
        "refused with 18 of 20 right on 2026-01-04",
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


def test_nothing_reviewed_is_no_pass() -> None:
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


def test_kappa_is_not_made_up_where_it_is_undefined() -> None:
    rows, first = reviewed(20, 20)
    _, second = reviewed(20, 20, "bob")
    (pair,) = figures(evaluate_review(rows, [*first, *second], ReviewRules(reviewers=2), "hash"))["agreement"]
    assert pair["kappa"] is None


def test_recorded_verdicts_are_said_to_be_recorded() -> None:
    rows, reviews = reviewed(20, 20)
    recorded = [Review(r.id, r.content_hash, r.reviewer, r.decision, r.at, recorded=True) for r in reviews[:15]]
    verdict = evaluate_review(rows, [*recorded, *reviews[15:]], RULES, "hash")
    assert verdict.figures["recorded"] == 15
    assert "15 of 20 verdicts are recorded" in verdict.summary
