"""The decision on a candidate: outcomes, figures and reasons."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest

from finetune_pipeline.baseline.prompts import PROMPTED
from finetune_pipeline.baseline.variants import CLASSICAL
from finetune_pipeline.config import Release
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Check, Decision
from finetune_pipeline.release.decide import check_names, decide
from finetune_pipeline.release.holdout_reuse import HoldoutReuse
from finetune_pipeline_tests.artifacts import task
from finetune_pipeline_tests.release.evidence import bits, evidence, losses

RULES = Release()


def check(decision: Decision, name: str) -> Check:
    return next(c for c in decision.checks if c.name == name)


def test_a_clear_gain_is_promoted_with_every_figure() -> None:
    decision = decide(evidence({"zero_shot": bits(135, 3), "few_shot": bits(135, 60), "tuned": bits(135, 112)}), RULES)
    assert decision.outcome == "PROMOTE"
    assert decision.summary.startswith("PROMOTE: the tuned model has 112 of 135 (83 %)")
    assert (decision.adapter, decision.evaluation) == ("adapter0", "evaluation0")
    gain: Any = decision.figures["gain"]
    assert gain["over"] == "few_shot"
    assert (gain["wins"], gain["losses"]) == (52, 0)
    assert gain["interval"][0] < gain["bounds"][0] < gain["difference"] < gain["bounds"][1] < gain["interval"][1]
    json.dumps(asdict(decision), allow_nan=False)  # it is stored as JSON


def test_a_gain_that_may_be_chance_is_inconclusive_with_the_rows_needed() -> None:
    tuned = bits(100, 54)
    tuned[60:64] = [True] * 4
    tuned[0:2] = [False] * 2  # 6 won, 2 lost
    decision = decide(evidence({"few_shot": bits(100, 52), "tuned": tuned}), RULES)
    assert decision.outcome == "INCONCLUSIVE"
    needed: Any = decision.figures["rows_needed"]
    assert needed["test rows"] > 100
    assert f"about {needed['test rows']} test rows in all are needed" in decision.summary


def test_a_worse_model_is_rejected() -> None:
    decision = decide(evidence({"few_shot": bits(100, 60), "tuned": bits(100, 45)}), RULES)
    assert decision.outcome == "REJECT"
    assert "better than few_shot" in decision.summary


def test_equal_models_are_not_promoted() -> None:
    decision = decide(evidence({"few_shot": bits(100, 60), "tuned": bits(100, 60)}), RULES)
    assert decision.outcome == "INCONCLUSIVE"
    assert "train a better model" in decision.summary


def test_the_tuned_model_has_to_beat_every_prompted_baseline() -> None:
    """Far better than two of three is not enough: each is a way to do without tuning."""
    right = {
        "zero_shot": bits(100, 5),
        "few_shot": bits(100, 10),
        "few_shot_retrieved": bits(100, 60),
        "tuned": bits(100, 62),
    }
    decision = decide(evidence(right), RULES)
    assert decision.outcome == "INCONCLUSIVE"
    assert check(decision, "better than few_shot").passed
    assert not check(decision, "better than few_shot_retrieved").passed


def test_a_declared_gain_has_to_be_exceeded() -> None:
    right = {"few_shot": bits(200, 100), "tuned": bits(200, 130)}  # 15 points, at least 11.4
    assert decide(evidence(right), rules_with(min_gain=0.10)).outcome == "PROMOTE"
    assert decide(evidence(right), rules_with(min_gain=0.14)).outcome == "INCONCLUSIVE"
    assert decide(evidence(right), rules_with(min_gain=0.25)).outcome == "REJECT"


def test_lost_general_ability_is_rejected_and_unclear_is_inconclusive() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    assert decide(evidence(right, losses(60, rise=0.30)), RULES).outcome == "REJECT"
    unclear = decide(evidence(right, losses(12, rise=0.09, spread=0.10)), RULES)
    assert unclear.outcome == "INCONCLUSIVE"
    assert "general texts" in unclear.summary
    assert decide(evidence(right, []), RULES).outcome == "INCONCLUSIVE"  # measured nothing is not harmless


def test_general_ability_not_measured_is_a_warning() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    decision = decide(replace(evidence(right), general=None), RULES)
    assert decision.outcome == "PROMOTE"
    assert "general ability kept" in decision.summary
    assert check(decision, "general ability kept").severity == "warning"


def test_the_share_of_valid_answers_has_a_threshold() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    assert decide(evidence(right, valid=0.97), RULES).outcome == "PROMOTE"
    assert "cannot exclude" in check(decide(evidence(right, valid=0.97), RULES), "answers keep the format").observed
    assert decide(evidence(right, valid=0.93), RULES).outcome == "INCONCLUSIVE"
    assert decide(evidence(right, valid=0.80), RULES).outcome == "REJECT"


def test_a_harmed_slice_blocks_whatever_the_mean() -> None:
    few = [i % 10 == 0 or i % 4 == 1 for i in range(300)]
    tuned = [i % 10 != 0 for i in range(300)]  # slice s0: all lost; the others: all won
    decision = decide(evidence({"few_shot": few, "tuned": tuned}, slices=10), RULES)
    assert decision.outcome == "REJECT"
    assert check(decision, "no slice harmed").observed == "s0: 0 of 30 right, few_shot 30"
    assert check(decision, "better than few_shot").passed


def test_a_small_slice_is_shown_and_not_tested() -> None:
    few, tuned = bits(300, 120), bits(300, 240)
    measured = evidence({"few_shot": few, "tuned": tuned})
    moved = [replace(s, slice="rare" if s.id in {"r0000", "r0001", "r0002"} else s.slice) for s in measured.scores]
    decision = decide(replace(measured, scores=moved), RULES)
    figures: Any = decision.figures["findings"]
    assert decision.outcome == "PROMOTE"
    assert figures["slices"]["slices"]["rare"]["state"] == "too few rows"
    assert "1 more have fewer than 10 rows" in check(decision, "slices without doubt").observed


def test_slices_that_cannot_exclude_harm_are_named() -> None:
    tuned = bits(100, 80)
    decision = decide(evidence({"few_shot": bits(100, 40), "tuned": tuned}, slices=10), RULES)
    warning = check(decision, "slices without doubt")
    figures: Any = decision.figures["findings"]
    assert decision.outcome == "PROMOTE"
    assert warning.severity == "warning"
    assert all(name in warning.observed for name in figures["slices_undecided"]["undecided"])


def test_a_classical_model_as_good_is_a_warning_that_does_not_block() -> None:
    right = {"few_shot": bits(135, 40), "classical": bits(135, 110), "tuned": bits(135, 112)}
    decision = decide(evidence(right), RULES)
    assert decision.outcome == "PROMOTE"
    assert "worth more than classical" in decision.summary
    assert "fraction of the cost" in check(decision, "worth more than classical").observed
    better = decide(evidence({**right, "classical": bits(135, 60)}), RULES)
    assert check(better, "worth more than classical").passed


def counted_outcomes(rows: int, both: int, first: int, second: int) -> tuple[list[bool], list[bool]]:
    """Two models: so many rows right with both, with the first alone, with the second alone."""
    return (
        [i < both + first for i in range(rows)],
        [i < both or both + first <= i < both + first + second for i in range(rows)],
    )


def test_a_candidate_worse_than_the_live_version_is_rejected() -> None:
    """It beats the prompt by far, and has 18 rows fewer right than the live version."""
    tuned, live = counted_outcomes(200, 140, 4, 22)
    right = {"few_shot": bits(200, 60), "tuned": tuned}
    assert decide(evidence(right), RULES).outcome == "PROMOTE"
    decision = decide(evidence({**right, "champion": live}, champion="version 3"), RULES)
    assert decision.outcome == "REJECT"
    assert "no worse than live version 3" in decision.summary
    assert "live version 3 has 162 of 200 (81 %)" in decision.summary
    assert not check(decision, "no worse than live version 3").passed


def test_a_loss_against_the_live_version_that_is_not_excluded_is_inconclusive() -> None:
    tuned, live = counted_outcomes(100, 70, 8, 8)
    right = {"few_shot": bits(100, 30), "tuned": tuned, "champion": live}
    decision = decide(evidence(right, champion="version 3"), RULES)
    assert decision.outcome == "INCONCLUSIVE"
    needed: Any = decision.figures["rows_needed"]
    assert needed["test rows"] > 300  # for no more than 5 points fewer, at these rates
    wider = rules_with(non_inferiority_margin=0.15)
    assert decide(evidence(right, champion="version 3"), wider).outcome == "PROMOTE"


def test_a_better_candidate_is_promoted_over_the_live_version() -> None:
    tuned, live = counted_outcomes(200, 150, 12, 6)
    decision = decide(
        evidence({"few_shot": bits(200, 60), "tuned": tuned, "champion": live}, champion="version 3"), RULES
    )
    assert decision.outcome == "PROMOTE"
    assert check(decision, "no worse than live version 3").passed


def test_a_shown_loss_is_rejected_even_within_the_margin() -> None:
    """The margin covers what the test rows cannot show, not a loss that they do show."""
    tuned, live = counted_outcomes(2000, 1700, 2, 42)  # two points fewer, without doubt
    decision = decide(evidence({"few_shot": bits(2000, 600), "tuned": tuned, "champion": live}, champion="v"), RULES)
    assert decision.outcome == "REJECT"
    assert "shown to be worse" in check(decision, "no worse than live v").observed


def test_without_a_live_version_the_check_says_that_there_is_none() -> None:
    decision = decide(evidence({"few_shot": bits(100, 40), "tuned": bits(100, 80)}), RULES)
    assert decision.outcome == "PROMOTE"
    warning = check(decision, "no worse than the live version")
    assert warning.passed
    assert "no version is live" in warning.observed


def test_a_live_version_without_answers_is_an_error() -> None:
    with pytest.raises(DataError, match="live version 3 has no answers"):
        decide(evidence({"few_shot": bits(100, 40), "tuned": bits(100, 80)}, champion="version 3"), RULES)


def test_a_candidate_worse_than_the_classical_model_is_rejected() -> None:
    tuned, classical = counted_outcomes(200, 120, 5, 30)
    decision = decide(evidence({"few_shot": bits(200, 40), "tuned": tuned, "classical": classical}), RULES)
    assert decision.outcome == "REJECT"
    assert "no worse than classical" in decision.summary


@pytest.mark.parametrize(("rows", "outcome"), [(5, "INCONCLUSIVE"), (65, "INCONCLUSIVE"), (66, "PROMOTE")])
def test_too_few_test_rows_are_inconclusive(rows: int, outcome: str) -> None:
    """Five rows, all won, are significant (p = 0.03), and no basis for a release."""
    decision = decide(evidence({"few_shot": bits(rows, 0), "tuned": bits(rows, rows)}), RULES)
    assert decision.outcome == outcome
    assert check(decision, "enough test rows").passed is (outcome == "PROMOTE")
    if outcome == "INCONCLUSIVE":
        assert f"at least 66 test rows are needed to decide, and there are {rows}" in decision.summary
        assert decision.figures["rows_needed"] == {"test rows": 66}


def test_harm_on_too_few_rows_does_not_reject_and_harm_on_general_texts_does() -> None:
    few = {"few_shot": bits(5, 5), "tuned": bits(5, 0)}
    assert decide(evidence(few), RULES).outcome == "INCONCLUSIVE"
    assert decide(evidence(few, losses(60, rise=0.30)), RULES).outcome == "REJECT"


def test_rows_of_one_group_count_once_for_the_rows_needed() -> None:
    right = {"few_shot": bits(100, 0), "tuned": bits(100, 100)}
    groups = {f"r{i:04}": f"customer {i // 20}" for i in range(100)}
    decision = decide(evidence(right, groups=groups), RULES)
    assert decision.outcome == "INCONCLUSIVE"
    assert "5 independent" in check(decision, "enough test rows").observed
    assert decision.figures["rows_needed"] == {"test rows": 1320}


def test_without_a_prompted_baseline_nothing_is_promoted() -> None:
    decision = decide(evidence({"classical": bits(100, 5), "tuned": bits(100, 95)}), RULES)
    assert decision.outcome == "INCONCLUSIVE"
    assert decision.figures["gain"] is None


def test_dependent_rows_count_once_in_the_comparison() -> None:
    """18 rows won and 6 lost look convincing; they are 6 customers won and 2 lost."""
    tuned = [i < 18 for i in range(100)]
    right = {"few_shot": [18 <= i < 24 for i in range(100)], "tuned": tuned}
    groups = {f"r{i:04}": f"customer {i // 3}" for i in range(24)}
    assert decide(evidence(right), RULES).outcome == "PROMOTE"
    assert decide(evidence(right, groups=groups), RULES).outcome == "INCONCLUSIVE"


def test_holdout_reuse_is_a_warning() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    assert check(decide(evidence(right), RULES), "holdout reuse").passed
    reused = decide(replace(evidence(right), reuse=HoldoutReuse(adapters=5, rule_sets=2)), RULES)
    warning = check(reused, "holdout reuse")
    assert reused.outcome == "PROMOTE"
    assert not warning.passed
    assert "5 adapters" in warning.observed
    assert "22.6 %" in warning.observed
    assert "2 sets of rules" in warning.observed


@pytest.mark.parametrize("rows", [99, 101])
def test_variants_on_different_rows_are_an_error(rows: int) -> None:
    with pytest.raises(DataError, match="few_shot and tuned were not scored once on the same test rows"):
        decide(evidence({"few_shot": bits(rows, 50), "tuned": bits(100, 80)}), RULES)


def test_a_row_scored_twice_is_an_error() -> None:
    measured = evidence({"few_shot": bits(50, 10), "tuned": bits(50, 40)})
    with pytest.raises(DataError, match="r0000"):
        decide(replace(measured, scores=[*measured.scores, measured.scores[0]]), RULES)


def test_no_rows_are_inconclusive() -> None:
    assert decide(evidence({}), RULES).outcome == "INCONCLUSIVE"
    assert decide(evidence({"few_shot": [], "tuned": []}), RULES).outcome == "INCONCLUSIVE"


def rules_with(**values: float) -> Release:
    return Release(**{**RULES.model_dump(), **values})


def test_the_names_that_are_known_before_a_run_are_those_of_the_checks() -> None:
    answer = {"format": "label", "labels": ["delivery", "returns"]}
    declared = task(answer=answer, baseline={"variants": ["zero_shot", "few_shot", "classical"]})
    rows = {name: bits(135, 60) for name in ("zero_shot", "few_shot", "classical")}
    decision = decide(evidence({**rows, "tuned": bits(135, 112)}), RULES)
    names = {check.name for check in decision.checks} - {"no worse than the live version"}
    assert set(check_names(declared)) == names
    assert all(check.value is not None for check in decision.checks if check.name.startswith("better than"))


def test_the_names_for_free_text_leave_out_the_classical_model() -> None:
    """It is among the default variants, and does not apply to free text."""
    declared = task(answer={"format": "text"})
    assert CLASSICAL in declared.baseline.variants
    rows: dict[str, Sequence[bool]] = {name: bits(135, 60) for name in PROMPTED}
    decision = decide(evidence({**rows, "tuned": bits(135, 112)}), RULES)
    names = {check.name for check in decision.checks} - {"no worse than the live version"}
    assert set(check_names(declared)) == names
