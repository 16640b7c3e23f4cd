"""The rules that say which tool the job wants: prompting, retrieval, fine-tuning, or both of the last. All visible.

Each rule compares one fact with one threshold and speaks for one tool, or for none. Then:

    retrieval     if any rule speaks for it (what changes, or has to be quoted, does not belong into weights)
    fine-tuning   if more rules speak for it than for prompting, and there are at least `min_examples` examples
    prompting     if neither holds

Thresholds without a source are rules of thumb of this project; they are shown so that they can be argued with.

    | number of examples | 842 | at least 500 | fine-tuning |

What it is not: the gate (assets.py): advice warns; only the number of examples blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, TypeAlias

from finetune_pipeline.config import Suitability
from finetune_pipeline.statistics.formatting import percent
from finetune_pipeline.suitability.estimates import Base, Estimate, Machine
from finetune_pipeline.suitability.facts import SHOTS, Facts

Tool: TypeAlias = Literal["prompting", "retrieval", "fine-tuning", "both"]
Vote: TypeAlias = Literal["prompting", "retrieval", "fine-tuning", ""]

CHANGING = ("monthly", "weekly", "daily")
FEW_ANSWERS = 0.2  # share of different answers below which answering is choosing
SAVED_PROMPT = 0.5  # share of the prompt that tuning saves
CONTRADICTIONS = 0.05  # share of rows that contradict others; widely used test sets have 3.3 % wrong labels
# (Northcutt et al., "Pervasive Label Errors in Test Sets", arXiv:2103.14749)
BITS_PER_PARAMETER = 2  # what a network can store (Allen-Zhu and Li, arXiv:2404.05405)
BITS_PER_TOKEN = 1  # what a tuned model has to learn of each answer token, about its loss before tuning


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table: what was found, the threshold it was held against, and which tool it speaks for."""

    rule: str
    found: str
    threshold: str
    speaks_for: Vote
    why: str


@dataclass(frozen=True, slots=True)
class Advice:
    """The recommended tool, method (one that `train.method` takes) and size of the base model, each with its reason."""

    tool: Tool
    findings: tuple[Finding, ...]
    method: str
    method_why: str
    size: str
    size_why: str


def advise(facts: Facts, figures: Estimate, base: Base, declared: Suitability, machine: Machine) -> Advice:
    """Weigh all rules."""
    findings = weigh(facts, figures, declared)
    method, method_why = best_method(facts, figures, machine)
    size, size_why = base_size(facts, base)
    return Advice(recommended(findings, facts, declared), findings, method, method_why, size, size_why)


def recommended(findings: Sequence[Finding], facts: Facts, declared: Suitability) -> Tool:
    votes = [finding.speaks_for for finding in findings]
    tune = votes.count("fine-tuning") > votes.count("prompting") and facts.usable >= declared.min_examples
    if "retrieval" in votes:
        return "both" if tune else "retrieval"
    return "fine-tuning" if tune else "prompting"


def weigh(facts: Facts, figures: Estimate, declared: Suitability) -> tuple[Finding, ...]:
    """The table of rules, in the order of the report."""
    return (
        _knowledge(declared),
        _sources(declared),
        _examples(facts, declared),
        _form(facts),
        _variety(facts),
        _prompt(facts),
        _load(figures, declared),
        _contradictions(facts),
    )


def _knowledge(declared: Suitability) -> Finding:
    return Finding(
        "how often the facts change",
        declared.knowledge_changes,
        "monthly or more often",
        "retrieval" if declared.knowledge_changes in CHANGING else "",
        "weights keep what they learned until the next training; a retrieved text is as new as its source",
    )


def _sources(declared: Suitability) -> Finding:
    return Finding(
        "answers have to quote sources",
        "yes" if declared.needs_sources else "no",
        "yes",
        "retrieval" if declared.needs_sources else "",
        "a tuned model cannot say where it knows something from",
    )


def _examples(facts: Facts, declared: Suitability) -> Finding:
    enough, few = facts.usable >= declared.recommended_examples, facts.usable < declared.min_examples
    return Finding(
        "number of usable examples",
        str(facts.usable),
        f"at least {declared.recommended_examples}; fewer than {declared.min_examples} are too few",
        "fine-tuning" if enough else "prompting" if few else "",
        "few examples fit into a prompt; many do not",
    )


def _form(facts: Facts) -> Finding:
    fixed = facts.format in ("label", "json")
    return Finding(
        "form of the answer",
        facts.format,
        "label or json",
        "fine-tuning" if fixed else "",
        "a fixed form is what tuning teaches most reliably",
    )


def _variety(facts: Facts) -> Finding:
    if facts.format == "json" and facts.fields:
        found, threshold = f"{facts.closed_fields} of {facts.fields} fields take few values", "half of the fields"
        few = 2 * facts.closed_fields >= facts.fields
    else:
        share = facts.distinct_answers / facts.usable if facts.usable else 1.0
        found, threshold = (
            f"{facts.distinct_answers} different answers ({percent(share)} of the rows)",
            percent(FEW_ANSWERS),
        )
        few = share <= FEW_ANSWERS
    why = "choosing among known answers is learned from examples; a classical model is compared with it, too"
    return Finding("variety of the answers", found, threshold, "fine-tuning" if few else "", why)


def _prompt(facts: Facts) -> Finding:
    saved = 1 - facts.tuned_prompt / facts.few_shot_prompt if facts.few_shot_prompt else 0.0
    shot, tuned = f"{facts.few_shot_prompt:.0f} tokens with {SHOTS} examples", f"{facts.tuned_prompt:.0f} tuned"
    found = f"{shot}, {tuned}: {percent(saved)} less"
    return Finding(
        "length of the prompt saved",
        found,
        percent(SAVED_PROMPT),
        "fine-tuning" if saved >= SAVED_PROMPT else "",
        "the examples in a prompt are paid for with every request, in money and in waiting",
    )


def _load(figures: Estimate, declared: Suitability) -> Finding:
    even = figures.break_even_requests
    dear = even is not None and declared.requests_per_day >= even
    return Finding(
        "requests per day",
        str(declared.requests_per_day),
        "hosting never pays" if even is None else f"{even:.0f} pay the hosting",
        "fine-tuning" if dear else "prompting",
        "below it, paying per token is cheaper than a machine of one's own",
    )


def _contradictions(facts: Facts) -> Finding:
    share = facts.contradictory / facts.raw if facts.raw else 0.0
    return Finding(
        "rows that contradict others",
        f"{facts.contradictory} of {facts.raw} ({percent(share)})",
        percent(CONTRADICTIONS),
        "prompting" if share >= CONTRADICTIONS else "",
        "who labels did not agree on the job yet: write down the rules first (a prompt is a place for them)",
    )


def best_method(facts: Facts, figures: Estimate, machine: Machine) -> tuple[str, str]:
    """LoRA, unless it does not fit into memory (QLoRA), or there is more to learn than the adapter can hold (full); of
    the methods that the declaration accepts."""
    bits = facts.usable * facts.completion_tokens * BITS_PER_TOKEN
    room = figures.adapter_parameters * BITS_PER_PARAMETER
    need = figures.memory_mb
    if bits > room:
        full = "full" in need
        return "full" if full else "lora", (
            f"the answers hold about {bits / 1e6:.1f} million bits, the adapter about {room / 1e6:.1f} million "
            f"({BITS_PER_PARAMETER} a parameter): raise `train.lora.r`{', or tune all weights' if full else ''}"
        )
    if need["lora"] > machine.free_mb:
        why = f"LoRA takes about {need['lora']:.0f} MB, {machine.free_mb:.0f} MB are at hand"
        if need.get("qlora", inf) <= machine.free_mb:
            return "qlora", f"{why}; with the base model in 4 bits it takes about {need['qlora']:.0f} MB"
        return "lora", f"{why}: lower `train.max_tokens_per_batch`, or take a smaller base model or a larger machine"
    return "lora", (
        f"the answers hold about {bits / 1e6:.2f} million bits and fit the adapter's {room / 1e6:.1f} million; "
        'within that, LoRA learns as much as full tuning (Schulman et al., "LoRA Without Regret", 2025)'
    )


def base_size(facts: Facts, base: Base) -> tuple[str, str]:
    """A range of parameters to start with, by what the answer is; a rule of thumb that the evaluation corrects."""
    if facts.format == "label" or (facts.fields and facts.closed_fields == facts.fields):
        size, why, low, high = "0.1 to 1 billion", "choosing among known values needs little language", 1e8, 1e9
    elif facts.format == "json":
        size, why, low, high = "0.1 to 3 billion", "extracting values needs reading, hardly any writing", 1e8, 3e9
    else:
        size, why, low, high = "1 to 8 billion", "free text shows every weakness of a small model", 1e9, 8e9
    have = f"{base.parameters / 1e9:.2f} billion are declared"
    place = (
        "smaller than that" if base.parameters < low else "larger than that" if base.parameters > high else "within it"
    )
    return size, f"{why}; {have}, {place}"
