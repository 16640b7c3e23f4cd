"""The suitability report as a page that people read: report.md. Pure: advice and figures in, Markdown out.

What it is not: report.json, which holds the same for machines (assets.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_pipeline.config import Suitability
from finetune_pipeline.records import Check
from finetune_pipeline.suitability.estimates import Estimate, Machine
from finetune_pipeline.suitability.facts import SHOTS, Facts
from finetune_pipeline.suitability.rules import Advice

TOOLS = {
    "prompting": "Write a prompt. Nothing here calls for training.",
    "retrieval": "Give a prompted model the texts it needs (retrieval): weights are the wrong place for them.",
    "fine-tuning": "Train a model on these examples.",
    "both": "Fine-tune for the form of the answers, and retrieve what changes or has to be quoted.",
}


def markdown(
    task: str, facts: Facts, advice: Advice, figures: Estimate, machine: Machine, declared: Suitability,
    checks: Sequence[Check],
) -> str:  # fmt: skip
    """The whole page."""
    parts = (
        [f"# Should {task} be fine-tuned?", "", f"**{advice.tool.capitalize()}.** {TOOLS[advice.tool]}", ""],
        _override(facts, declared),
        _table(("check", "expected", "found", "holds"), [(c.name, c.expected, c.observed, _yes(c)) for c in checks]),
        ["## Which tool", ""],
        _table(
            ("rule", "found", "threshold", "speaks for", "why"),
            [(f.rule, f.found, f.threshold, f.speaks_for or "neither", f.why) for f in advice.findings],
        ),
        ["Retrieval, if any rule speaks for it. Fine-tuning, if more rules speak for it than for prompting and there"],
        [f"are at least {declared.min_examples} examples. Otherwise prompting.", ""],
        ["## How", ""],
        [f"- Method: **{advice.method}**. {_sentence(advice.method_why)}"],
        [f"- Base model: **{advice.size}** parameters. {_sentence(advice.size_why)}", ""],
        ["## What it takes", ""],
        _table(("estimate", "value", "how"), _estimates(facts, figures, machine, declared)),
        ["Estimates are right within a factor of two or so; labeling and people's time are not in them."],
        ["The formulas and their sources stand in `finetune_pipeline/suitability/estimates.py`.", ""],
    )
    return "\n".join(line for part in parts for line in part)


def _estimates(facts: Facts, figures: Estimate, machine: Machine, declared: Suitability) -> list[tuple[str, str, str]]:
    money = declared.currency
    memory = ", ".join(f"{name} {mb:.0f} MB" for name, mb in figures.memory_mb.items())
    months, even = figures.break_even_months, figures.break_even_requests
    price = (
        f"{facts.few_shot_prompt + facts.completion_tokens:.0f} tokens a request with {SHOTS} examples in the prompt"
    )
    return [
        (
            "training tokens",
            f"{figures.training_tokens:,.0f}",
            f"{facts.prompt_tokens + facts.completion_tokens:.0f} a row, the system prompt once a batch, all epochs, "
            "general texts",
        ),
        (
            "training work",
            f"{figures.training_flops / 1e12:,.0f} TFLOP",
            "4 N D for the tuned layers, 2 N D once for those below, 6 n D for the adapter",
        ),
        (
            "training time",
            duration(figures.training_seconds),
            f"on a machine like this one ({machine.device}: {machine.gflops:.0f} GFLOP/s, {machine.precision})",
        ),
        ("memory", memory, f"{machine.free_mb:.0f} MB are free here"),
        ("training cost", f"{figures.training_cost:.2f} {money}", f"{declared.training_per_hour} {money} an hour"),
        (
            "prompted model",
            f"{figures.prompted_per_month:.2f} {money} a month",
            f"{declared.requests_per_day} requests a day, {price}, {declared.prompted_price} {money} a million tokens",
        ),
        ("tuned model", f"{figures.tuned_per_month:.2f} {money} a month", "hosting, as declared"),
        (
            "break-even",
            "never at this load" if months is None else f"after {months:.1f} months",
            "hosting never pays" if even is None else f"hosting pays from {even:,.0f} requests a day",
        ),
    ]


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever a person would say."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _override(facts: Facts, declared: Suitability) -> list[str]:
    if facts.usable >= declared.min_examples or not declared.override:
        return []
    return [f"> Going on with {facts.usable} examples in spite of this gate. Reason declared: {declared.override}", ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def _yes(check: Check) -> str:
    return "yes" if check.passed else f"no ({check.severity})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
