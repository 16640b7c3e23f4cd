"""Rounds of the review: which rows are drawn, when a round ends, and how often bad data passes in repeated rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from finetune_pipeline.config import ReviewRules
from finetune_pipeline.records import Example
from finetune_pipeline.review.gate import evaluate_review
from finetune_pipeline.review.rounds import GateResult, History, ReviewsByRow, rules_hash
from finetune_pipeline.review.sampling import Sample, draw
from finetune_pipeline_tests.artifacts import example
from finetune_pipeline_tests.review.verdicts import verdict

RULES = ReviewRules()
ROWS = [example(f"r{i:03}", f"prompt {i}", f"completion {i}") for i in range(400)]


def reviews_of(rows: Sequence[Example], wrong: Callable[[Example], bool] = lambda row: False) -> ReviewsByRow:
    return {(row.id, row.content_hash): [verdict(row, "reject" if wrong(row) else "approve")] for row in rows}


def stored(sample: Sample, passed: bool | None = None, about: str = "v1", rules: ReviewRules = RULES) -> History:
    """The history once the sample's round has a verdict, and the gate's result if there is one."""
    results = () if passed is None else (GateResult(passed, 0, 0, about, rules_hash(rules), "t"),)
    return History((replace(sample.round, gone=0, population=None),), {sample.round.number: results})


def first(rows: Sequence[Example] = ROWS, rules: ReviewRules = RULES) -> Sample:
    return draw(rows, History(), None, {}, rules, "v1")


@pytest.mark.parametrize(("rows", "drawn"), [(5, 5), (40, 20), (195, 20), (201, 21), (1000, 100), (9000, 500)])
def test_a_round_draws_ten_percent_within_the_declared_limits(rows: int, drawn: int) -> None:
    assert len(first([example(f"r{i}", "q", "a") for i in range(rows)]).rows) == drawn


def test_where_the_bound_decides_a_round_has_enough_rows_to_reach_it() -> None:
    strict = ReviewRules(require_lower_bound=True)
    sample = first(rules=strict)
    assert len(sample.rows) == 72
    failed = stored(sample, False, rules=strict)
    again = draw(ROWS[:-1], failed, sample.round, reviews_of(sample.rows), strict, "v2")
    assert len(again.rows) == 86
    default = first()
    after = draw(ROWS[:-1], stored(default, False), default.round, reviews_of(default.rows), RULES, "v2")
    assert (len(default.rows), len(after.rows)) == (40, 86), "a small sample does not decide after the gate failed"


def test_the_sample_depends_on_the_seed_and_not_on_the_order_of_rows() -> None:
    assert first(list(reversed(ROWS))) == first()
    assert first(rules=ReviewRules(seed=8)).rows != first().rows


def test_all_rows_are_equally_likely() -> None:
    rows = [example(f"r{i}", "q", "a") for i in range(20)]
    counts = dict.fromkeys((row.id for row in rows), 0)
    for seed in range(400):
        for row in first(rows, ReviewRules(fraction=0.5, min_rows=1, seed=seed)).rows:
            counts[row.id] += 1
    assert all(150 < count < 250 for count in counts.values()), counts  # 200 expected, five standard deviations


def test_after_the_gate_failed_only_unreviewed_rows_are_drawn() -> None:
    sample = first()
    reviews = reviews_of(sample.rows, lambda row: row.id < "r200")
    fixed = [row.with_completion("fixed") if reviews.get((row.id, row.content_hash)) else row for row in ROWS]
    second = draw(fixed, stored(sample, False), sample.round, reviews, RULES, "v2")
    assert (second.round.number, second.round.analysis) == (2, 2)
    assert not {(row.id, row.content_hash) for row in second.rows} & set(reviews)
    assert second.round.population == 400, "the fixed rows are unreviewed rows, too"
    unfixed = draw([*ROWS, example("new", "q", "a")], stored(sample, False), sample.round, reviews, RULES, "v2")
    assert unfixed.round.population == 401 - len(sample.rows)


def test_rows_reviewed_beside_a_sample_are_not_drawn_later() -> None:
    sample = first()
    others = [row for row in ROWS if row not in sample.rows][:50]
    reviews = {**reviews_of(sample.rows), **reviews_of(others)}
    second = draw(ROWS[:-1], stored(sample, False), sample.round, reviews, RULES, "v2")
    assert not set(second.rows) & set(others)
    without_history = draw(ROWS, History(), None, reviews, RULES, "v2")
    assert not {(row.id, row.content_hash) for row in without_history.rows} & set(reviews), (
        "also when the stored rounds were deleted"
    )


def test_recorded_verdicts_on_rows_that_were_not_drawn_do_not_count() -> None:
    recorded = {
        version: [replace(review, recorded=True) for review in given] for version, given in reviews_of(ROWS).items()
    }
    sample = draw(ROWS, History(), None, recorded, RULES, "v1")
    assert sample.rows == first().rows
    second = draw(ROWS[:-1], stored(sample, False), sample.round, recorded, RULES, "v2")
    assert not set(second.rows) & set(sample.rows)


def test_after_the_gate_failed_a_round_ends_only_when_data_or_rules_change() -> None:
    sample = first()
    reviews = reviews_of(sample.rows, lambda row: True)
    assert draw(ROWS, stored(sample, False), sample.round, reviews, RULES, "v1").rows == sample.rows
    more = ReviewRules(min_rows=60)
    assert draw(ROWS, stored(sample, False), sample.round, reviews, more, "v1").round.number == 2


def test_added_rows_are_drawn_at_the_same_rate_and_drawn_rows_stay() -> None:
    sample = first()
    added = [example(f"n{i:03}", "q", "a") for i in range(400)]
    grown = draw(ROWS + added, stored(sample), sample.round, reviews_of(sample.rows[:5]), RULES, "v2")
    assert grown.round.number == 1
    assert set(sample.rows) <= set(grown.rows)
    assert 20 <= len(set(grown.rows) - set(sample.rows)) <= 60  # 40 expected, three standard deviations


def test_a_rejected_row_counts_as_wrong_after_it_was_fixed() -> None:
    sample = first()
    reviews = reviews_of(sample.rows[:10], lambda row: row in sample.rows[:2])
    without = [row for row in ROWS if row not in sample.rows[:2]]
    again = draw(without, stored(sample), sample.round, reviews, RULES, "v2")
    assert again.round.gone == 2
    assert again.rows == sample.rows[2:], "no other row is drawn in its place"


def test_a_row_that_was_removed_before_its_review_counts_as_wrong() -> None:
    sample = first()
    again = draw(
        [r for r in ROWS if r != sample.rows[9]], stored(sample), sample.round, reviews_of(sample.rows[:5]), RULES, "v2"
    )
    assert again.round.gone == 1


def test_an_approved_row_may_be_removed_or_changed() -> None:
    sample = first()
    changed = [row.with_completion("other") if row == sample.rows[1] else row for row in ROWS if row != sample.rows[0]]
    again = draw(changed, stored(sample), sample.round, reviews_of(sample.rows), RULES, "v2")
    assert again.round.gone == 0
    assert {row.id for row in again.rows} == {row.id for row in sample.rows[1:]}, "the changed row is reviewed again"


def test_a_round_that_can_no_longer_pass_ends() -> None:
    sample = first()
    without = [row for row in ROWS if row not in sample.rows[:20]]
    again = draw(without, stored(sample), sample.round, reviews_of(sample.rows[20:30]), RULES, "v2")
    assert (again.round.number, again.round.analysis, again.round.gone) == (2, 2, 0)
    assert not {row.id for row in again.rows} & {row.id for row in sample.rows[20:30]}


def test_a_round_that_the_data_outgrew_ends() -> None:
    rules = ReviewRules(max_rows=40)
    sample = first(rules=rules)
    many = [*ROWS, *(example(f"n{i:04}", "q", "a") for i in range(800))]
    again = draw(many, stored(sample, True, rules=rules), sample.round, reviews_of(sample.rows), rules, "v2")
    assert (again.round.number, again.round.analysis, len(again.rows)) == (2, 1, 40), "approved rows are not drawn"


@pytest.mark.parametrize("settings", [{"fraction": 0.02}, {"fraction": 0.5}, {"seed": 99}, {"min_rows": 200}])
def test_other_settings_draw_again_only_before_the_first_verdict(settings: dict[str, float]) -> None:
    sample = first()
    rules = ReviewRules(**settings)
    assert draw(ROWS, stored(sample), sample.round, reviews_of(sample.rows[:1]), rules, "v1").rows == sample.rows
    assert draw(ROWS, History(), sample.round, {}, rules, "v1").rows != sample.rows, "before that they do"


def test_fixing_drawn_rows_before_the_first_verdict_draws_another_sample() -> None:
    """There is no verdict yet, but the sample can be read."""
    sample = first()
    fixed = [replace(row, id=f"x{row.id}") if row in sample.rows[:8] else row for row in ROWS]
    again = draw(fixed, History(), sample.round, {}, RULES, "v2")
    assert (again.round.number, again.round.analysis) == (1, 1)
    assert len(set(again.rows) & set(sample.rows)) < 15  # 4 expected where the draws are independent
    assert draw([*ROWS, example("new", "q", "a")], History(), sample.round, {}, RULES, "v2").rows[:5] == sample.rows[:5]


def test_data_that_passed_starts_a_new_count_of_analyses() -> None:
    sample = first()
    reviews = reviews_of(sample.rows)
    same = rules_hash(RULES)
    for rules, analysis in ((same, 2), ("others", 4)):
        results = (GateResult(True, 0, 0, "v1", rules, ""), GateResult(False, 0, 0, "v2", same, ""))
        history = History((replace(sample.round, analysis=3),), {1: results})
        assert draw(ROWS[1:], history, None, reviews, RULES, "v3").round.analysis == analysis


def test_where_every_row_was_reviewed_all_rows_are_the_sample() -> None:
    rows = ROWS[:20]
    sample = first(rows)
    reviews = reviews_of(rows, lambda row: row in rows[:2])
    rest = draw(rows[2:], stored(sample, False), sample.round, reviews, RULES, "v2")
    assert set(rest.rows) == set(rows[2:])
    given = [review for row in rows[2:] for review in reviews[row.id, row.content_hash]]
    verdict = evaluate_review(rest.rows, given, ReviewRules(require_lower_bound=True), "v2", rest.round)
    assert verdict.passed
