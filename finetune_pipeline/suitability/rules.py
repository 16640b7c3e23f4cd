"""Recommend prompting, retrieval, fine-tuning, or fine-tuning with retrieval, by rules that the report shows. Pure.

Each rule compares one fact with one threshold and supports one tool, or none. Then:

    retrieval     if any rule supports it (facts that change or have to be cited do not belong in weights)
    fine-tuning   if more rules support it than prompting, and there are at least `min_examples` examples
    prompting     otherwise

Thresholds without a source are rules of thumb of this project; the report shows them so that a team can disagree.

    | number of usable examples | 842 | at least 500 | fine-tuning |

Only the number of examples blocks a run (assets.py); everything here is a recommendation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from finetune_pipeline.config import Suitability
from finetune_pipeline.models.trained_weights import METHODS, Method
from finetune_pipeline.models.training_fit import fitting_adapter
from finetune_pipeline.statistics.formatting import percent, percent_down, percent_up
from finetune_pipeline.suitability.estimates import Estimate, Machine
from finetune_pipeline.suitability.facts import Facts

Tool: TypeAlias = Literal["prompting", "retrieval", "fine-tuning", "both"]
Support: TypeAlias = Literal["prompting", "retrieval", "fine-tuning", ""]

CHANGING = ("monthly", "weekly", "daily")
FEW_ANSWERS = 0.2  # share of distinct answers up to which the task is a choice among known answers
SAVED_PROMPT = 0.5  # share of the prompt's tokens that tuning saves
CONTRADICTIONS = 0.05  # share of rows that contradict others; widely used test sets have 3.3 % wrong labels
# (Northcutt et al., "Pervasive Label Errors in Test Sets", arXiv:2103.14749)
BITS_PER_PARAMETER = 2  # that a network can store (Allen-Zhu and Li, arXiv:2404.05405)
BITS_PER_TOKEN = 1  # to learn per completion token: about its loss before tuning


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One line of the table: the observed value, the threshold, and the tool that the rule supports ("": none)."""

    rule: str
    observed: str
    threshold: str
    supports: Support
    why: str


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The recommended tool, method (one that `train.method` accepts; None where none fits into the memory) and size of
    the base model, with reasons."""

    tool: Tool
    rules: tuple[RuleResult, ...]
    method: Method | None
    method_why: str
    size: str
    size_why: str


def recommend(
    facts: Facts, estimate: Estimate, parameters: int, config: Suitability, machine: Machine
) -> Recommendation:
    """Apply all rules; `parameters`: of the base model."""
    rules = apply_rules(facts, estimate, config)
    method, method_why = recommend_method(facts, estimate, machine)
    size, size_why = recommend_size(facts, parameters)
    return Recommendation(recommend_tool(rules, facts, config), rules, method, method_why, size, size_why)


def recommend_tool(rules: Sequence[RuleResult], facts: Facts, config: Suitability) -> Tool:
    supported = [result.supports for result in rules]
    more = supported.count("fine-tuning") > supported.count("prompting")
    tune = more and facts.usable >= config.min_examples
    if "retrieval" in supported:
        return "both" if tune else "retrieval"
    return "fine-tuning" if tune else "prompting"


def apply_rules(facts: Facts, estimate: Estimate, config: Suitability) -> tuple[RuleResult, ...]:
    """The table of rules, in the order of the report."""
    return (
        _knowledge(config),
        _sources(config),
        _examples(facts, config),
        _form(facts),
        _variety(facts),
        _prompt(facts),
        _load(estimate, config),
        _contradictions(facts),
    )


def _knowledge(config: Suitability) -> RuleResult:
    return RuleResult(
        "how often the facts change",
        config.knowledge_changes,
        "monthly or more often",
        "retrieval" if config.knowledge_changes in CHANGING else "",
        "weights keep what they learned until the next training; a retrieved text is as new as its source",
    )


def _sources(config: Suitability) -> RuleResult:
    return RuleResult(
        "answers have to cite sources",
        "yes" if config.needs_sources else "no",
        "yes",
        "retrieval" if config.needs_sources else "",
        "a tuned model does not know which text a fact comes from",
    )


def _examples(facts: Facts, config: Suitability) -> RuleResult:
    enough, few = facts.usable >= config.recommended_examples, facts.usable < config.min_examples
    return RuleResult(
        "number of usable examples",
        str(facts.usable),
        f"at least {config.recommended_examples}; fewer than {config.min_examples} are too few",
        "fine-tuning" if enough else "prompting" if few else "",
        "few examples fit into a prompt, many do not",
    )


def _form(facts: Facts) -> RuleResult:
    fixed = facts.answer_format in ("label", "json")
    return RuleResult(
        "format of the answer",
        facts.answer_format,
        "label or json",
        "fine-tuning" if fixed else "",
        "a fixed format is what tuning teaches most reliably",
    )


def _variety(facts: Facts) -> RuleResult:
    if facts.answer_format == "json" and facts.fields:
        observed = f"{facts.closed_fields} of {facts.fields} fields take few values"
        threshold = "half of the fields"
        few = 2 * facts.closed_fields >= facts.fields
    else:
        share = facts.distinct_completions / facts.usable if facts.usable else 1.0
        observed = f"{facts.distinct_completions} different answers ({percent_up(share)} of the rows)"
        threshold = percent(FEW_ANSWERS)
        few = share <= FEW_ANSWERS
    why = "a choice among known answers is learned from examples; the evaluation compares a classical model, too"
    return RuleResult("variety of the answers", observed, threshold, "fine-tuning" if few else "", why)


def _prompt(facts: Facts) -> RuleResult:
    few_shot, tuned = facts.few_shot_prompt_tokens, facts.tuned_prompt_tokens
    saved = 1 - tuned / few_shot if few_shot else 0.0
    return RuleResult(
        "length of the prompt saved",
        f"{few_shot:.0f} tokens with {facts.shots} examples, {tuned:.0f} tuned: {percent_down(saved)} less",
        percent(SAVED_PROMPT),
        "fine-tuning" if saved >= SAVED_PROMPT else "",
        "examples in a prompt add cost and latency to every request",
    )


def _load(estimate: Estimate, config: Suitability) -> RuleResult:
    even = estimate.break_even_requests
    reached = even is not None and config.requests_per_day >= even
    return RuleResult(
        "requests per day",
        str(config.requests_per_day),
        "hosting never pays" if even is None else f"{even:.0f} pay the hosting",
        "fine-tuning" if reached else "prompting",
        "with fewer requests, paying per token costs less than hosting a model",
    )


def _contradictions(facts: Facts) -> RuleResult:
    share = facts.contradictory / facts.raw if facts.raw else 0.0
    return RuleResult(
        "rows that contradict others",
        f"{facts.contradictory} of {facts.raw} ({percent_down(share)})",
        percent(CONTRADICTIONS),
        "prompting" if share >= CONTRADICTIONS else "",
        "the labelers do not agree on the task yet: write down the rules first (a prompt can hold them)",
    )


def recommend_method(facts: Facts, estimate: Estimate, machine: Machine) -> tuple[Method | None, str]:
    """LoRA, unless it does not fit into memory (QLoRA) or there is more to learn than the adapter can store (full,
    where it fits); None where no method fits. Returns the method and why."""
    bits = facts.usable * facts.completion_tokens * BITS_PER_TOKEN
    capacity = estimate.adapter_parameters * BITS_PER_PARAMETER
    adapter = fitting_adapter(estimate.fits)
    full = estimate.fits["full"].verdict != "TOO BIG"
    beyond = (
        f"the answers hold about {bits / 1e6:.1f} million bits, the adapter about {capacity / 1e6:.1f} million "
        f"({BITS_PER_PARAMETER} a parameter): raise `train.lora.r`"
    )
    if bits > capacity and full:
        return "full", f"{beyond}, or tune all weights"
    if adapter is None:
        return None, f"{_needs(estimate, machine, METHODS)}: use a smaller base model, or a GPU that has enough"
    if bits > capacity:
        return adapter, f"{beyond}; {_needs(estimate, machine, ('full', adapter))}"
    if adapter == "qlora":
        return adapter, f"{_needs(estimate, machine, ('lora', 'qlora'))}: the base model is kept in 4 bits"
    return adapter, (
        f"the answers hold about {bits / 1e6:.2f} million bits and fit the adapter's {capacity / 1e6:.1f} million; "
        'within that, LoRA learns as much as full tuning (Schulman et al., "LoRA Without Regret", 2025)'
    )


def _needs(estimate: Estimate, machine: Machine, methods: Sequence[Method]) -> str:
    """lora needs about 15,230 MB, qlora needs about 5,110 MB, and 12,000 MB are free"""
    needs = [f"{method} needs about {estimate.fits[method].memory.total_mb:,.0f} MB" for method in methods]
    return f"{', '.join(needs)}, and {machine.free_mb:,.0f} MB are free"


def recommend_size(facts: Facts, parameters: int) -> tuple[str, str]:
    """A range of parameters to start with, by the format of the answer, and why; a rule of thumb that the evaluation
    corrects."""
    if facts.answer_format == "label" or (facts.fields and facts.closed_fields == facts.fields):
        size, why, low, high = "0.1 to 1 billion", "a choice among known values needs little language", 1e8, 1e9
    elif facts.answer_format == "json":
        size, why, low, high = "0.1 to 3 billion", "extracting values needs reading, and hardly any writing", 1e8, 3e9
    else:
        size, why, low, high = "1 to 8 billion", "free text shows every weakness of a small model", 1e9, 8e9
    declared = f"the declared model has {parameters / 1e9:.2f} billion"
    relation = "smaller than that" if parameters < low else "larger than that" if parameters > high else "within it"
    return size, f"{why}; {declared}, {relation}"
