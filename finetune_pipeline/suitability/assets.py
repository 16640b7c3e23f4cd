"""Make the asset suitability_report: whether to fine-tune this task, with which method, and at what cost.

    report.json   {"facts": …, "recommendation": …, "estimate": …, "machine": …, "override": null} (SuitabilityReport)
    report.md     the same for people (report.py)

The gate fails only when there are fewer usable examples than `suitability.min_examples`, and passes even then where the
declaration gives a reason (`suitability.override`). All other checks are warnings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from finetune_pipeline.config import Provider, Suitability
from finetune_pipeline.models.model_files import token_counter
from finetune_pipeline.models.model_source import folder_of
from finetune_pipeline.providers import cost
from finetune_pipeline.providers.rows import counted
from finetune_pipeline.records import Check, Drop, Json, Verdict, read_jsonl
from finetune_pipeline.statistics.formatting import duration
from finetune_pipeline.store import StageContext, StageResult
from finetune_pipeline.suitability.estimates import Estimate, Machine, estimate_training
from finetune_pipeline.suitability.facts import Facts, collect_facts, sample
from finetune_pipeline.suitability.probe import measure
from finetune_pipeline.suitability.report import NONE_FITS, managed_training, markdown
from finetune_pipeline.suitability.rules import Recommendation, recommend


@dataclass(frozen=True, slots=True)
class SuitabilityReport:
    """What report.json holds."""

    facts: Facts
    recommendation: Recommendation
    estimate: Estimate
    machine: Machine
    override: str | None


@dataclass(frozen=True, slots=True)
class SuitabilityFigures:
    """The figures of the gate's verdict: usable rows, and the names of the warnings."""

    usable: int
    warnings: list[str]


def suitability_report(context: StageContext) -> StageResult:
    """Recommend a tool, a method and a size for the task, from its declaration and its cleaned rows."""
    config, clean = context.task.suitability, context.inputs["clean_examples"]
    base = folder_of(context.inputs["base_model"], context.task.base, context.report)
    facts, method = _facts(context, base), context.task.train.method
    with TemporaryDirectory() as folder:
        probe = measure(context.task.train, base, Path(folder), context.report)
    machine, parameters = probe.machine, probe.architecture.parameters
    estimate = estimate_training(facts, probe.architecture, context.task.train, config, machine)
    advice = recommend(facts, estimate, parameters, config, machine)
    verdict = evaluate_suitability(facts, advice, estimate, machine, config, clean.content_hash, method)
    page = markdown(context.task.name, facts, advice, estimate, machine, config, verdict.checks)
    if context.task.train.provider is not None:
        page += managed_training(_managed_cost(context, base, context.task.train.provider), context.task.train.provider)
    (context.out / "report.md").write_text(page, "utf-8")
    report = asdict(SuitabilityReport(facts, advice, estimate, machine, config.override))
    (context.out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), "utf-8")
    context.report.log(verdict.summary)
    return StageResult(_summary(facts, advice, estimate, config), verdict)


def evaluate_suitability(
    facts: Facts,
    advice: Recommendation,
    estimate: Estimate,
    machine: Machine,
    config: Suitability,
    about: str,
    method: str,
) -> Verdict:
    """The gate's verdict about the rows with content hash `about`; `method`: the declared one."""
    checks = (
        _min_examples(facts, config),
        Check(
            "examples for a reliable result",
            facts.usable >= config.recommended_examples,
            f"at least {config.recommended_examples}",
            str(facts.usable),
            "warning",
            facts.usable,
        ),
        Check("tool", advice.tool in ("fine-tuning", "both"), "fine-tuning or both", advice.tool, "warning"),
        _memory(estimate, machine, method),
        Check(
            "pays for itself",
            estimate.break_even_months is not None,
            "prompting costs more than hosting",
            f"prompting {estimate.prompted_per_month:.2f}, hosting {estimate.tuned_per_month:.2f} {config.currency} "
            "per month",
            "warning",
        ),
    )
    passed = all(check.passed for check in checks if check.severity == "error")
    summary = f"{facts.usable} usable examples; recommended: {advice.tool}"
    if not passed:
        summary += f"; at least {config.min_examples} are required to tune and to test a model"
    elif facts.usable < config.min_examples:
        summary += f"; fewer than {config.min_examples}, continued because of the override: {config.override}"
    warnings = [check.name for check in checks if not check.passed and check.severity == "warning"]
    figures = asdict(SuitabilityFigures(facts.usable, warnings))
    return Verdict("suitability_report", passed, about, summary, checks, figures)


def _min_examples(facts: Facts, config: Suitability) -> Check:
    enough = facts.usable >= config.min_examples
    reason = "" if enough or not config.override else f"; override: {config.override}"
    return Check(
        "usable examples",
        enough or bool(config.override),
        f"at least {config.min_examples}",
        f"{facts.usable} of {facts.raw} raw rows{reason}",
        value=facts.usable,
    )


def _memory(estimate: Estimate, machine: Machine, method: str) -> Check:
    fit = estimate.fits[method]
    need = fit.memory.total_mb
    observed = f"{fit.verdict}: about {need:,.0f} MB needed, {machine.free_mb:,.0f} MB free"
    passed = fit.verdict != "TOO BIG"
    return Check("fits into this machine's memory", passed, f"{method} fits", observed, "warning", need)


def _facts(context: StageContext, base: Path) -> Facts:
    raw, clean = (context.inputs[name] for name in ("raw_examples", "clean_examples"))
    raw_rows = sum(1 for name in ("examples.jsonl", "drops.jsonl") for _ in read_jsonl(raw.path(name)))
    dropped = Counter(Drop(**row).reason for row in read_jsonl(clean.path("drops.jsonl")))
    count_tokens = token_counter(base)
    return collect_facts(list(clean.examples()), raw_rows, dropped, context.task, count_tokens)


def _managed_cost(context: StageContext, base: Path, provider: Provider) -> cost.TrainingCost:
    """What the provider is estimated to charge: counted as its job counts, for the share of the rows that trains."""
    rows = list(context.inputs["clean_examples"].examples())
    measured = sample(rows)
    found = counted(measured, context.task.prompt.system, provider, token_counter(base))
    split = context.task.split
    scale = len(rows) / max(1, len(measured)) * (1.0 - split.test - split.validation)
    return cost.estimate(round(found.tokens * scale), round(found.rows * scale), provider)


def _summary(facts: Facts, advice: Recommendation, estimate: Estimate, config: Suitability) -> Mapping[str, Json]:
    overridden = facts.usable < config.min_examples
    return {
        "tool": advice.tool,
        "usable": facts.usable,
        "raw": facts.raw,
        "method": advice.method or NONE_FITS,
        "base_size": advice.size,
        "training_time": duration(estimate.training_seconds),
        "training_cost": round(estimate.training_cost, 2),
        "prompted_per_month": round(estimate.prompted_per_month, 2),
        "tuned_per_month": round(estimate.tuned_per_month, 2),
        "break_even_months": None if estimate.break_even_months is None else round(estimate.break_even_months, 1),
        "currency": config.currency,
        **({"override": config.override} if overridden else {}),
    }
