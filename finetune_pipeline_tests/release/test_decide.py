from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from finetune_pipeline.config import Release, task_from
from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Check, Decision
from finetune_pipeline.release.criteria import Reuse
from finetune_pipeline.release.decide import check_names, decide
from finetune_pipeline_tests.release.evidence import bits, evidence, losses

RULES = Release()


def check(decision: Decision, name: str) -> Check:
    return next(c for c in decision.checks if c.name == name)


def test_a_clear_gain_is_promoted_with_every_figure() -> None:
    found = decide(evidence({"zero_shot": bits(135, 3), "few_shot": bits(135, 60), "tuned": bits(135, 112)}), RULES)
    assert found.outcome == "PROMOTE"
    assert found.summary.startswith("PROMOTE: the tuned model has 112 of 135 (83.0 %)")
    assert (found.adapter, found.evaluation) == ("adapter0", "evaluation0")
    gain: Any = found.figures["gain"]
    assert gain["over"] == "few_shot"
    assert (gain["wins"], gain["losses"]) == (52, 0)
    assert gain["interval"][0] < gain["bounds"][0] < gain["difference"] < gain["bounds"][1] < gain["interval"][1]
    json.dumps(asdict(found), allow_nan=False)  # it is stored as JSON


def test_a_gain_that_may_be_luck_is_inconclusive_and_says_how_many_rows() -> None:
    tuned = bits(100, 54)
    tuned[60:64] = [True] * 4
    tuned[0:2] = [False] * 2  # 6 won, 2 lost
    found = decide(evidence({"few_shot": bits(100, 52), "tuned": tuned}), RULES)
    assert found.outcome == "INCONCLUSIVE"
    needed: Any = found.figures["rows_needed"]
    assert needed["test rows"] > 100
    assert f"about {needed['test rows']} test rows in all would decide" in found.summary


def test_a_worse_model_is_rejected() -> None:
    found = decide(evidence({"few_shot": bits(100, 60), "tuned": bits(100, 45)}), RULES)
    assert found.outcome == "REJECT"
    assert "better than few_shot" in found.summary


def test_equal_models_are_not_promoted() -> None:
    found = decide(evidence({"few_shot": bits(100, 60), "tuned": bits(100, 60)}), RULES)
    assert found.outcome == "INCONCLUSIVE"
    assert "a better model would" in found.summary


def test_every_prompted_baseline_has_to_be_beaten() -> None:
    """Far better than two of three is not enough: each is a way to do without tuning."""
    right = {
        "zero_shot": bits(100, 5),
        "few_shot": bits(100, 10),
        "few_shot_retrieved": bits(100, 60),
        "tuned": bits(100, 62),
    }
    found = decide(evidence(right), RULES)
    assert found.outcome == "INCONCLUSIVE"
    assert check(found, "better than few_shot").passed
    assert not check(found, "better than few_shot_retrieved").passed


def test_a_declared_gain_has_to_be_exceeded() -> None:
    right = {"few_shot": bits(200, 100), "tuned": bits(200, 130)}  # 15 points, at least 11.4
    assert decide(evidence(right), replace_rules(min_gain=0.10)).outcome == "PROMOTE"
    assert decide(evidence(right), replace_rules(min_gain=0.14)).outcome == "INCONCLUSIVE"
    assert decide(evidence(right), replace_rules(min_gain=0.25)).outcome == "REJECT"


def test_lost_general_ability_is_rejected_and_unclear_is_inconclusive() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    assert decide(evidence(right, losses(60, rise=0.30)), RULES).outcome == "REJECT"
    unclear = decide(evidence(right, losses(12, rise=0.09, spread=0.10)), RULES)
    assert unclear.outcome == "INCONCLUSIVE"
    assert "general texts" in unclear.summary
    assert decide(evidence(right, []), RULES).outcome == "INCONCLUSIVE"  # measured nothing is not harmless


def test_general_ability_not_measured_is_a_visible_warning() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    found = decide(replace(evidence(right), general=None), RULES)
    assert found.outcome == "PROMOTE"
    assert "general ability kept" in found.summary
    assert check(found, "general ability kept").severity == "warning"


def test_the_format_has_a_bar() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    assert decide(evidence(right, valid=0.97), RULES).outcome == "PROMOTE"
    assert "cannot exclude" in check(decide(evidence(right, valid=0.97), RULES), "answers keep the format").observed
    assert decide(evidence(right, valid=0.93), RULES).outcome == "INCONCLUSIVE"
    assert decide(evidence(right, valid=0.80), RULES).outcome == "REJECT"


def test_a_harmed_slice_blocks_whatever_the_mean() -> None:
    few = [i % 10 == 0 or i % 4 == 1 for i in range(300)]
    tuned = [i % 10 != 0 for i in range(300)]  # slice s0: all lost; the others: all won
    found = decide(evidence({"few_shot": few, "tuned": tuned}, slices=10), RULES)
    assert found.outcome == "REJECT"
    assert check(found, "no slice harmed").observed == "s0: 0 of 30 right, few_shot 30"
    assert check(found, "better than few_shot").passed


def test_a_small_slice_decides_nothing_but_is_shown() -> None:
    few, tuned = bits(300, 120), bits(300, 240)
    given = evidence({"few_shot": few, "tuned": tuned})
    moved = [replace(s, slice="rare" if s.id in {"r0000", "r0001", "r0002"} else s.slice) for s in given.scores]
    found = decide(replace(given, scores=moved), RULES)
    figures: Any = found.figures["findings"]
    assert found.outcome == "PROMOTE"
    assert figures["slices"]["slices"]["rare"]["state"] == "too few rows"
    assert "1 more have fewer than 10 rows" in check(found, "slices without doubt").observed


def test_slices_that_cannot_exclude_harm_are_named() -> None:
    tuned = bits(100, 80)
    found = decide(evidence({"few_shot": bits(100, 40), "tuned": tuned}, slices=10), RULES)
    named = check(found, "slices without doubt")
    figures: Any = found.figures["findings"]
    assert found.outcome == "PROMOTE"
    assert named.severity == "warning"
    assert all(name in named.observed for name in figures["slices_undecided"]["undecided"])


def test_a_classical_model_as_good_is_a_warning_that_does_not_block() -> None:
    right = {"few_shot": bits(135, 40), "classical": bits(135, 110), "tuned": bits(135, 112)}
    found = decide(evidence(right), RULES)
    assert found.outcome == "PROMOTE"
    assert "worth more than classical" in found.summary
    assert "fraction of the cost" in check(found, "worth more than classical").observed
    better = decide(evidence({**right, "classical": bits(135, 60)}), RULES)
    assert check(better, "worth more than classical").passed


def of_counts(rows: int, both: int, first: int, second: int) -> tuple[list[bool], list[bool]]:
    """Two models: so many rows right with both, with the first alone, with the second alone."""
    return (
        [i < both + first for i in range(rows)],
        [i < both or both + first <= i < both + first + second for i in range(rows)],
    )


def test_a_retraining_that_is_worse_than_what_is_live_is_not_promoted() -> None:
    """It beats the prompt by far, and has 18 rows fewer right than the live version."""
    tuned, live = of_counts(200, 140, 4, 22)
    right = {"few_shot": bits(200, 60), "tuned": tuned}
    assert decide(evidence(right), RULES).outcome == "PROMOTE"
    found = decide(evidence({**right, "champion": live}, champion="version 3"), RULES)
    assert found.outcome == "REJECT"
    assert "no worse than live version 3" in found.summary
    assert "live version 3 has 162 of 200 (81.0 %)" in found.summary
    assert not check(found, "no worse than live version 3").passed


def test_what_cannot_exclude_a_loss_against_the_live_version_is_inconclusive() -> None:
    tuned, live = of_counts(100, 70, 8, 8)
    right = {"few_shot": bits(100, 30), "tuned": tuned, "champion": live}
    found = decide(evidence(right, champion="version 3"), RULES)
    assert found.outcome == "INCONCLUSIVE"
    needed: Any = found.figures["rows_needed"]
    assert needed["test rows"] > 300  # for no more than 5 points fewer, at these rates
    wider = replace_rules(non_inferiority_margin=0.15)
    assert decide(evidence(right, champion="version 3"), wider).outcome == "PROMOTE"


def test_a_better_retraining_replaces_the_live_version() -> None:
    tuned, live = of_counts(200, 150, 12, 6)
    found = decide(evidence({"few_shot": bits(200, 60), "tuned": tuned, "champion": live}, champion="version 3"), RULES)
    assert found.outcome == "PROMOTE"
    assert check(found, "no worse than live version 3").passed


def test_a_loss_that_is_shown_is_refused_even_within_the_margin() -> None:
    """The margin covers what the test rows cannot tell, not a loss that they show."""
    tuned, live = of_counts(2000, 1700, 2, 42)  # two points fewer, without doubt
    found = decide(evidence({"few_shot": bits(2000, 600), "tuned": tuned, "champion": live}, champion="v"), RULES)
    assert found.outcome == "REJECT"
    assert "shown to be worse" in check(found, "no worse than live v").observed


def test_without_a_live_version_there_is_none_to_hold_against_and_it_is_said() -> None:
    found = decide(evidence({"few_shot": bits(100, 40), "tuned": bits(100, 80)}), RULES)
    assert found.outcome == "PROMOTE"
    said = check(found, "no worse than the live version")
    assert said.passed
    assert "no version is live" in said.observed


def test_a_live_version_without_answers_is_refused() -> None:
    with pytest.raises(DataError, match="live version 3 has no answers"):
        decide(evidence({"few_shot": bits(100, 40), "tuned": bits(100, 80)}, champion="version 3"), RULES)


def test_a_candidate_that_loses_to_the_classical_model_is_not_promoted() -> None:
    tuned, classical = of_counts(200, 120, 5, 30)
    found = decide(evidence({"few_shot": bits(200, 40), "tuned": tuned, "classical": classical}), RULES)
    assert found.outcome == "REJECT"
    assert "no worse than classical" in found.summary


@pytest.mark.parametrize(("rows", "outcome"), [(5, "INCONCLUSIVE"), (65, "INCONCLUSIVE"), (66, "PROMOTE")])
def test_too_few_test_rows_decide_nothing(rows: int, outcome: str) -> None:
    """Five rows, all won, are significant (p = 0.03), and no basis for a release."""
    found = decide(evidence({"few_shot": bits(rows, 0), "tuned": bits(rows, rows)}), RULES)
    assert found.outcome == outcome
    assert check(found, "enough test rows").passed is (outcome == "PROMOTE")
    if outcome == "INCONCLUSIVE":
        assert f"it takes at least 66 test rows to decide, and there are {rows}" in found.summary
        assert found.figures["rows_needed"] == {"test rows": 66}


def test_too_few_rows_do_not_reject_either_but_general_texts_do() -> None:
    few = {"few_shot": bits(5, 5), "tuned": bits(5, 0)}
    assert decide(evidence(few), RULES).outcome == "INCONCLUSIVE"
    assert decide(evidence(few, losses(60, rise=0.30)), RULES).outcome == "REJECT"


def test_rows_of_one_group_count_once_for_what_is_enough() -> None:
    right = {"few_shot": bits(100, 0), "tuned": bits(100, 100)}
    groups = {f"r{i:04}": f"customer {i // 20}" for i in range(100)}
    found = decide(evidence(right, groups=groups), RULES)
    assert found.outcome == "INCONCLUSIVE"
    assert "5 independent" in check(found, "enough test rows").observed
    assert found.figures["rows_needed"] == {"test rows": 1320}


def test_without_a_prompted_baseline_nothing_is_promoted() -> None:
    found = decide(evidence({"classical": bits(100, 5), "tuned": bits(100, 95)}), RULES)
    assert found.outcome == "INCONCLUSIVE"
    assert found.figures["gain"] is None


def test_rows_that_belong_together_count_once() -> None:
    """18 rows won and 6 lost look convincing; they are 6 customers won and 2 lost."""
    tuned = [i < 18 for i in range(100)]
    right = {"few_shot": [18 <= i < 24 for i in range(100)], "tuned": tuned}
    groups = {f"r{i:04}": f"customer {i // 3}" for i in range(24)}
    assert decide(evidence(right), RULES).outcome == "PROMOTE"
    assert decide(evidence(right, groups=groups), RULES).outcome == "INCONCLUSIVE"


def test_a_worn_test_set_is_said() -> None:
    right = {"few_shot": bits(100, 40), "tuned": bits(100, 80)}
    assert check(decide(evidence(right), RULES), "test set not worn out").passed
    worn = decide(replace(evidence(right), reuse=Reuse(adapters=5, rules=2)), RULES)
    said = check(worn, "test set not worn out")
    assert worn.outcome == "PROMOTE"
    assert not said.passed
    assert "5 adapters" in said.observed
    assert "23%" in said.observed
    assert "2 sets of rules" in said.observed


@pytest.mark.parametrize("rows", [99, 101])
def test_other_rows_are_refused(rows: int) -> None:
    with pytest.raises(DataError, match="few_shot and tuned were not scored once on the same test rows"):
        decide(evidence({"few_shot": bits(rows, 50), "tuned": bits(100, 80)}), RULES)


def test_a_row_scored_twice_is_refused() -> None:
    given = evidence({"few_shot": bits(50, 10), "tuned": bits(50, 40)})
    with pytest.raises(DataError, match="r0000"):
        decide(replace(given, scores=[*given.scores, given.scores[0]]), RULES)


def test_no_rows_decide_nothing() -> None:
    assert decide(evidence({}), RULES).outcome == "INCONCLUSIVE"
    assert decide(evidence({"few_shot": [], "tuned": []}), RULES).outcome == "INCONCLUSIVE"


def replace_rules(**values: float) -> Release:
    return Release(**{**RULES.model_dump(), **values})


def test_the_names_that_are_known_before_a_run_are_those_of_the_checks() -> None:
    least = {"name": "t", "sources": [{"path": "x"}], "base": {"path": "m", "license": "mit"}}
    declared = task_from(least | {"baseline": {"variants": ["zero_shot", "few_shot", "classical"]}}, "task.yaml")
    rows = {name: bits(135, 60) for name in ("zero_shot", "few_shot", "classical")}
    found = decide(evidence({**rows, "tuned": bits(135, 112)}), RULES)
    names = {check.name for check in found.checks} - {"no worse than the live version"}
    assert set(check_names(declared)) == names
    assert all(one.value is not None for one in found.checks if one.name.startswith("better than"))
