"""Which tool is advised, and that every rule can tip it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from finetune_pipeline.config import Suitability, Train
from finetune_pipeline.suitability.estimates import METHODS, Base, Machine, estimate, memory_mb
from finetune_pipeline.suitability.facts import Facts
from finetune_pipeline.suitability.rules import Advice, Finding, advise, best_method, recommended, weigh

SMALL = Base(parameters=134_515_008, hidden=576, layers=30, vocabulary=49_152)
GOOD = Facts(1000, 800, 10, "json", 300, 4, 3, system_tokens=50, prompt_tokens=40, completion_tokens=20)
POOR = Facts(1000, 300, 10, "text", 300, 0, 0, system_tokens=900, prompt_tokens=40, completion_tokens=20)
MACHINE = Machine(gflops=100, free_mb=8000)


def advice(facts: Facts, machine: Machine = MACHINE, base: Base = SMALL, **declared: Any) -> Advice:
    said = Suitability(**declared)
    return advise(facts, estimate(facts, base, Train(), said, machine), base, said, machine)


def vote(rule: str, facts: Facts = POOR, **declared: Any) -> str:
    said = Suitability(**declared)
    found = weigh(facts, estimate(facts, SMALL, Train(), said, MACHINE), said)
    return next(finding.speaks_for for finding in found if finding.rule == rule)


def test_many_consistent_examples_of_a_fixed_form_are_for_tuning() -> None:
    assert advice(GOOD, requests_per_day=100_000).tool == "fine-tuning"


def test_free_text_with_a_long_prompt_and_little_load_is_for_prompting() -> None:
    assert advice(POOR, requests_per_day=10).tool == "prompting"


@pytest.mark.parametrize("declared", [{"knowledge_changes": "daily"}, {"needs_sources": True}])
def test_what_changes_or_must_be_quoted_is_for_retrieval(declared: dict[str, Any]) -> None:
    assert advice(GOOD, requests_per_day=100_000, **declared).tool == "both"
    assert advice(POOR, requests_per_day=10, **declared).tool == "retrieval"


def test_too_few_examples_are_never_for_tuning() -> None:
    assert advice(replace(GOOD, usable=199), requests_per_day=100_000).tool == "prompting"


@pytest.mark.parametrize(
    ("rule", "facts", "declared", "expected"),
    [
        ("how often the facts change", POOR, {"knowledge_changes": "monthly"}, "retrieval"),
        ("how often the facts change", POOR, {"knowledge_changes": "yearly"}, ""),
        ("answers have to quote sources", POOR, {"needs_sources": True}, "retrieval"),
        ("answers have to quote sources", POOR, {}, ""),
        ("number of usable examples", replace(POOR, usable=500), {}, "fine-tuning"),
        ("number of usable examples", replace(POOR, usable=499), {}, ""),
        ("number of usable examples", replace(POOR, usable=199), {}, "prompting"),
        ("form of the answer", replace(POOR, format="label"), {}, "fine-tuning"),
        ("form of the answer", POOR, {}, ""),
        ("variety of the answers", replace(POOR, distinct_answers=60), {}, "fine-tuning"),
        ("variety of the answers", replace(POOR, distinct_answers=61), {}, ""),
        ("variety of the answers", replace(POOR, format="json", fields=4, closed_fields=2), {}, "fine-tuning"),
        ("variety of the answers", replace(POOR, format="json", fields=4, closed_fields=1), {}, ""),
        ("length of the prompt saved", replace(POOR, system_tokens=200), {}, "fine-tuning"),
        ("length of the prompt saved", replace(POOR, system_tokens=201), {}, ""),
        ("requests per day", POOR, {"requests_per_day": 1_000_000}, "fine-tuning"),
        ("requests per day", POOR, {"requests_per_day": 1}, "prompting"),
        ("requests per day", POOR, {"prompted_price": 0}, "prompting"),
        ("rows that contradict others", replace(POOR, contradictory=50), {}, "prompting"),
        ("rows that contradict others", replace(POOR, contradictory=49), {}, ""),
    ],
)
def test_each_rule_at_its_threshold(rule: str, facts: Facts, declared: dict[str, Any], expected: str) -> None:
    assert vote(rule, facts, **declared) == expected


def test_a_tie_is_not_for_tuning() -> None:
    findings = [Finding("a", "", "", "fine-tuning", ""), Finding("b", "", "", "prompting", "")]
    assert recommended(findings, GOOD, Suitability()) == "prompting"


def test_the_method_follows_memory_and_what_there_is_to_learn() -> None:
    seven = Base(parameters=7_000_000_000, hidden=4096, layers=32, vocabulary=32_000)
    assert advice(GOOD).method == "lora"
    figures = estimate(GOOD, seven, Train(), Suitability(), MACHINE)
    every = {method: memory_mb(method, GOOD, seven, Train(), "bf16") for method in ("lora", "qlora", "full")}
    small_card = Machine(gflops=1000, free_mb=every["qlora"])
    assert best_method(GOOD, replace(figures, memory_mb=every), small_card)[0] == "qlora"
    much = replace(GOOD, usable=200_000_000)
    assert best_method(much, replace(figures, memory_mb=every), MACHINE)[0] == "full"


@pytest.mark.parametrize("free_mb", [1.0, 20_000.0, 1e6])
@pytest.mark.parametrize("usable", [300, 200_000_000])
def test_what_is_recommended_can_be_declared(usable: int, free_mb: float) -> None:
    seven = Base(parameters=7_000_000_000, hidden=4096, layers=32, vocabulary=32_000)
    found = advice(replace(GOOD, usable=usable), Machine(1000, free_mb), seven)
    assert Train.model_validate({"method": found.method}).method == found.method
    assert set(METHODS) <= set(get_args(Train.model_fields["method"].annotation))
    if free_mb == 1.0 and usable == 300:
        assert "smaller base model" in found.method_why


def test_the_base_model_is_held_against_the_kind_of_answer() -> None:
    assert "within it" in advice(GOOD).size_why
    text = advice(POOR)
    assert text.size.startswith("1 to 8")
    assert "smaller than that" in text.size_why
