"""Which tool, method and size are recommended, and each rule at its threshold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_pipeline.config import Suitability, Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.suitability.estimates import Machine, estimate_training
from finetune_pipeline.suitability.facts import Facts
from finetune_pipeline.suitability.rules import (
    Recommendation,
    RuleResult,
    apply_rules,
    recommend,
    recommend_tool,
)
from finetune_pipeline.train.plan.prediction import recommend as planned_method
from finetune_pipeline_tests.models.sizes import seven, smollm

SMALL = smollm()
GOOD = Facts(1000, 800, 10, "json", 300, 4, 3, system_tokens=50, prompt_tokens=40, completion_tokens=20)
POOR = Facts(1000, 300, 10, "text", 300, 0, 0, system_tokens=900, prompt_tokens=40, completion_tokens=20)
MACHINE = Machine(gflops=100, free_mb=8000)


def advice(facts: Facts, machine: Machine = MACHINE, base: Architecture = SMALL, **settings: Any) -> Recommendation:
    config = Suitability(**settings)
    return recommend(facts, estimate_training(facts, base, Train(), config, machine), base.parameters, config, machine)


def supported(rule: str, facts: Facts = POOR, **settings: Any) -> str:
    config = Suitability(**settings)
    results = apply_rules(facts, estimate_training(facts, SMALL, Train(), config, MACHINE), config)
    return next(result.supports for result in results if result.rule == rule)


def test_many_consistent_examples_of_a_fixed_format_recommend_tuning() -> None:
    assert advice(GOOD, requests_per_day=100_000).tool == "fine-tuning"


def test_free_text_with_a_long_prompt_and_little_load_recommends_prompting() -> None:
    assert advice(POOR, requests_per_day=10).tool == "prompting"


@pytest.mark.parametrize("settings", [{"knowledge_changes": "daily"}, {"needs_sources": True}])
def test_changing_facts_or_cited_sources_recommend_retrieval(settings: dict[str, Any]) -> None:
    assert advice(GOOD, requests_per_day=100_000, **settings).tool == "both"
    assert advice(POOR, requests_per_day=10, **settings).tool == "retrieval"


def test_too_few_examples_never_recommend_tuning() -> None:
    assert advice(replace(GOOD, usable=199), requests_per_day=100_000).tool == "prompting"


@pytest.mark.parametrize(
    ("rule", "facts", "settings", "expected"),
    [
        ("how often the facts change", POOR, {"knowledge_changes": "monthly"}, "retrieval"),
        ("how often the facts change", POOR, {"knowledge_changes": "yearly"}, ""),
        ("answers have to cite sources", POOR, {"needs_sources": True}, "retrieval"),
        ("answers have to cite sources", POOR, {}, ""),
        ("number of usable examples", replace(POOR, usable=500), {}, "fine-tuning"),
        ("number of usable examples", replace(POOR, usable=499), {}, ""),
        ("number of usable examples", replace(POOR, usable=199), {}, "prompting"),
        ("format of the answer", replace(POOR, answer_format="label"), {}, "fine-tuning"),
        ("format of the answer", POOR, {}, ""),
        ("variety of the answers", replace(POOR, distinct_completions=60), {}, "fine-tuning"),
        ("variety of the answers", replace(POOR, distinct_completions=61), {}, ""),
        ("variety of the answers", replace(POOR, answer_format="json", fields=4, closed_fields=2), {}, "fine-tuning"),
        ("variety of the answers", replace(POOR, answer_format="json", fields=4, closed_fields=1), {}, ""),
        ("length of the prompt saved", replace(POOR, system_tokens=200), {}, "fine-tuning"),
        ("length of the prompt saved", replace(POOR, system_tokens=201), {}, ""),
        ("requests per day", POOR, {"requests_per_day": 1_000_000}, "fine-tuning"),
        ("requests per day", POOR, {"requests_per_day": 1}, "prompting"),
        ("requests per day", POOR, {"prompted_price": 0}, "prompting"),
        ("rows that contradict others", replace(POOR, contradictory=50), {}, "prompting"),
        ("rows that contradict others", replace(POOR, contradictory=49), {}, ""),
    ],
)
def test_each_rule_at_its_threshold(rule: str, facts: Facts, settings: dict[str, Any], expected: str) -> None:
    assert supported(rule, facts, **settings) == expected


def test_a_tie_does_not_recommend_tuning() -> None:
    results = [RuleResult("a", "", "", "fine-tuning", ""), RuleResult("b", "", "", "prompting", "")]
    assert recommend_tool(results, GOOD, Suitability()) == "prompting"


def test_the_method_depends_on_memory_and_on_the_bits_to_learn() -> None:
    assert advice(GOOD).method == "lora"
    card = Machine(gflops=100_000, free_mb=12_000, device="cuda")
    assert advice(GOOD, card, seven()).method == "qlora"
    much = replace(GOOD, usable=200_000_000)
    several = Machine(gflops=100_000, free_mb=1e6, device="cuda")
    assert advice(much, several, seven()).method == "full"


@pytest.mark.parametrize(("free_mb", "adapter"), [(12_000, "qlora"), (24_000, "lora")])
def test_where_full_weights_do_not_fit_a_higher_rank_is_advised(free_mb: float, adapter: str) -> None:
    card = Machine(gflops=100_000, free_mb=free_mb, device="cuda")
    recommendation = advice(replace(GOOD, usable=200_000_000), card, seven())
    assert recommendation.method == adapter
    assert "raise `train.lora.r`; full needs about" in recommendation.method_why
    assert f"and {free_mb:,.0f} MB are free" in recommendation.method_why


@pytest.mark.parametrize("free_mb", [1.0, 20_000.0, 1e6])
@pytest.mark.parametrize("usable", [300, 200_000_000])
def test_the_recommended_method_is_one_that_the_declaration_accepts_and_that_fits(usable: int, free_mb: float) -> None:
    facts, machine = replace(GOOD, usable=usable), Machine(1000, free_mb)
    recommendation = advice(facts, machine, seven())
    fits = estimate_training(facts, seven(), Train(), Suitability(), machine).fits
    if free_mb == 1.0:
        assert recommendation.method is None
        assert "smaller base model, or a GPU" in recommendation.method_why
        assert {each.verdict for each in fits.values()} == {"TOO BIG"}
    else:
        assert recommendation.method is not None
        assert Train.model_validate({"method": recommendation.method}).method == recommendation.method
        assert fits[recommendation.method].verdict != "TOO BIG"


@pytest.mark.parametrize("free_mb", [1.0, 6_000.0, 12_000.0, 24_000.0, 1e6])
def test_the_plan_recommends_the_same_method_for_the_same_memory(free_mb: float) -> None:
    machine = Machine(100_000, free_mb, "cuda")
    fits = estimate_training(GOOD, seven(), Train(), Suitability(), machine).fits
    planned, _ = planned_method("lora", fits, free_mb)
    assert advice(GOOD, machine, seven()).method == planned


def test_the_base_model_is_compared_with_the_size_for_its_answer_format() -> None:
    assert "within it" in advice(GOOD).size_why
    free_text = advice(POOR)
    assert free_text.size.startswith("1 to 8")
    assert "smaller than that" in free_text.size_why
