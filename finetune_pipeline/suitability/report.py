"""Write the suitability report as a page for people, report.md. Pure: returns Markdown.

| check | expected | observed | passed |
| usable examples | at least 200 | 842 of 912 raw rows | yes |
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_pipeline.config import Provider, Suitability
from finetune_pipeline.models.gpu_fit import gpu_rows
from finetune_pipeline.models.trained_weights import METHODS
from finetune_pipeline.providers.cost import TrainingCost
from finetune_pipeline.records import Check
from finetune_pipeline.statistics.formatting import duration
from finetune_pipeline.suitability.estimates import Estimate, Machine
from finetune_pipeline.suitability.facts import Facts
from finetune_pipeline.suitability.rules import Recommendation

TOOLS = {
    "prompting": "Write a prompt. The rules do not recommend training.",
    "retrieval": "Give a prompted model the texts it needs (retrieval): weights are the wrong place for them.",
    "fine-tuning": "Train a model on these examples.",
    "both": "Fine-tune for the format of the answers, and retrieve facts that change or have to be cited.",
}


NONE_FITS = "none fits"


def markdown(
    task: str, facts: Facts, advice: Recommendation, estimate: Estimate, machine: Machine, config: Suitability,
    checks: Sequence[Check],
) -> str:  # fmt: skip
    """The whole page."""
    parts = (
        [f"# Should {task} be fine-tuned?", "", f"**{advice.tool.capitalize()}.** {TOOLS[advice.tool]}", ""],
        _override(facts, config),
        _table(
            ("check", "expected", "observed", "passed"), [(c.name, c.expected, c.observed, _passed(c)) for c in checks]
        ),
        ["## Which tool", ""],
        _table(
            ("rule", "observed", "threshold", "supports", "why"),
            [(r.rule, r.observed, r.threshold, r.supports or "neither", r.why) for r in advice.rules],
        ),
        ["Retrieval, if any rule supports it. Fine-tuning, if more rules support it than prompting and there"],
        [f"are at least {config.min_examples} examples. Otherwise prompting.", ""],
        ["## Method and base model", ""],
        [f"- Method: **{advice.method or NONE_FITS}**. {_sentence(advice.method_why)}"],
        [f"- Base model: **{advice.size}** parameters. {_sentence(advice.size_why)}", ""],
        ["## Time, memory and cost", ""],
        _table(
            ("estimate", "value", "how"),
            [*_training(facts, estimate, machine, config), *_running(facts, estimate, config)],
        ),
        ["Estimates are right within a factor of about two; the time of people, such as labeling, is not included."],
        ["The formulas and their sources are in `finetune_pipeline/models/training_memory.py` and `training_work.py`."],
        ["`training_plan` measures the training after the split.", "", "## Where the training fits", ""],
        _table(("GPU", *METHODS), gpu_rows(estimate.gpus, config.currency)),
        ["The smallest number of each GPU, with the time (and the price, where `suitability.gpu_per_hour` has one)."],
        ["TIGHT: it may fit. An asterisk: with gradient checkpointing.", ""],
    )
    return "\n".join(line for part in parts for line in part)


def managed_training(estimate: TrainingCost, provider: Provider) -> str:
    """The part of the page for `train.provider`: its cost, and what of the page is about this machine only."""
    epochs = f"{estimate.epochs} epochs" + ("" if estimate.epochs_declared else ", assumed: the provider chooses")
    return (
        f"\n## Training at a provider\n\n`train.provider` trains {provider.model} instead of the base model. Method, "
        "time, memory and cost of a training above are those of this machine, for comparison. Estimated: "
        f"{estimate} ({epochs}); tokens are counted with the base model's tokenizer, the provider's count may differ.\n"
    )


def _training(facts: Facts, estimate: Estimate, machine: Machine, config: Suitability) -> list[tuple[str, str, str]]:
    """The rows about one training: tokens, work, time, memory, cost."""
    memory = ", ".join(f"{name} {fit.memory.total_mb:,.0f} MB ({fit.verdict})" for name, fit in estimate.fits.items())
    return [
        (
            "training tokens",
            f"{estimate.training_tokens:,.0f}",
            f"{facts.prompt_tokens + facts.completion_tokens:.0f} per row, the system prompt once per batch, all "
            "epochs, general texts",
        ),
        (
            "training work",
            f"{estimate.training_flops / 1e12:,.0f} TFLOP",
            "of all optimizer steps",
        ),
        (
            "training time",
            duration(estimate.training_seconds),
            f"on this machine ({machine.device}: {machine.gflops:.0f} GFLOP/s, {machine.precision})",
        ),
        ("memory", memory, f"{machine.free_mb:,.0f} MB are free here"),
        (
            "training cost",
            f"{estimate.training_cost:.2f} {config.currency}",
            f"{config.training_per_hour} {config.currency} per hour",
        ),
    ]


def _running(facts: Facts, estimate: Estimate, config: Suitability) -> list[tuple[str, str, str]]:
    """The rows about the running cost of a prompted and of a tuned model."""
    months, even = estimate.break_even_months, estimate.break_even_requests
    tokens = facts.few_shot_prompt_tokens + facts.completion_tokens
    return [
        (
            "prompted model",
            f"{estimate.prompted_per_month:.2f} {config.currency} per month",
            f"{config.requests_per_day} requests per day, {tokens:.0f} tokens per request with {facts.shots} examples "
            f"in the prompt, {config.prompted_price} {config.currency} per million tokens",
        ),
        ("tuned model", f"{estimate.tuned_per_month:.2f} {config.currency} per month", "hosting, as declared"),
        (
            "break-even",
            "never at this load" if months is None else f"after {months:.1f} months",
            "hosting never pays" if even is None else f"hosting pays from {even:,.0f} requests per day",
        ),
    ]


def _override(facts: Facts, config: Suitability) -> list[str]:
    if facts.usable >= config.min_examples or not config.override:
        return []
    return [f"> The run continues with {facts.usable} examples. `suitability.override`: {config.override}", ""]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def _passed(check: Check) -> str:
    return "yes" if check.passed else f"no ({check.severity})"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
