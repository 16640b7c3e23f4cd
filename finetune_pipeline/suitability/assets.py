"""The suitability report as an asset: report.json, report.md, and the gate "worth tuning".

The gate blocks for one thing alone: fewer usable examples than `suitability.min_examples`, unless the declaration says
why to go on (`suitability.override`). All else is advice and warns. Pure parts: facts.py, rules.py, estimates.py,
report.py and `evaluate_suitability`; probe.py measures the machine, and this module writes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from finetune_pipeline.config import Suitability
from finetune_pipeline.models.base_model import folder_of, token_counter
from finetune_pipeline.records import Check, Json, Verdict, read_jsonl
from finetune_pipeline.store import StageContext, StageResult
from finetune_pipeline.suitability.estimates import Base, Estimate, Machine, estimate
from finetune_pipeline.suitability.facts import Facts, gather
from finetune_pipeline.suitability.probe import measured
from finetune_pipeline.suitability.report import duration, markdown
from finetune_pipeline.suitability.rules import Advice, advise


def suitability_report(work: StageContext) -> StageResult:
    """Advise on the task from its declaration and its cleaned rows."""
    declared, clean = work.task.suitability, work.inputs["clean_examples"]
    described = work.inputs["base_model"].json("base_model.json")
    base = Base(*(described[name] for name in ("parameters", "hidden", "layers", "vocabulary")))
    facts = _facts(work)
    with TemporaryDirectory() as folder:
        machine = measured(work.task.train, Path(folder), work.report)
    figures = estimate(facts, base, work.task.train, declared, machine)
    advice = advise(facts, figures, base, declared, machine)
    verdict = evaluate_suitability(facts, advice, figures, machine, declared, clean.content_hash)
    page = markdown(work.task.name, facts, advice, figures, machine, declared, verdict.checks)
    (work.out / "report.md").write_text(page, "utf-8")
    report: dict[str, Any] = {"facts": asdict(facts), "advice": asdict(advice), "estimate": asdict(figures)}
    report |= {"machine": asdict(machine), "override": declared.override}
    (work.out / "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), "utf-8")
    work.report.log(verdict.summary)
    return StageResult(_summary(facts, advice, figures, declared), verdict)


def evaluate_suitability(
    facts: Facts, advice: Advice, figures: Estimate, machine: Machine, declared: Suitability, about: str
) -> Verdict:
    """The gate. Only too few examples without a declared reason refuse."""
    checks = (
        _enough(facts, declared),
        Check(
            "examples for a reliable result",
            facts.usable >= declared.recommended_examples,
            f"at least {declared.recommended_examples}",
            str(facts.usable),
            "warning",
            facts.usable,
        ),
        Check("tool", advice.tool in ("fine-tuning", "both"), "fine-tuning or both", advice.tool, "warning"),
        _memory(figures, machine),
        Check(
            "pays for itself",
            figures.break_even_months is not None,
            "prompting costs more than hosting",
            f"{figures.prompted_per_month:.2f} and {figures.tuned_per_month:.2f} {declared.currency} a month",
            "warning",
        ),
    )
    passed = all(check.passed for check in checks if check.severity == "error")
    summary = f"{facts.usable} usable examples; the signs speak for {advice.tool}"
    if not passed:
        summary += f"; fewer than {declared.min_examples} are too few to tune on and to test with"
    elif facts.usable < declared.min_examples:
        summary += f"; going on in spite of too few examples: {declared.override}"
    warned: list[Json] = [check.name for check in checks if not check.passed and check.severity == "warning"]
    return Verdict("suitability_report", passed, about, summary, checks, {"usable": facts.usable, "warnings": warned})


def _enough(facts: Facts, declared: Suitability) -> Check:
    enough = facts.usable >= declared.min_examples
    reason = "" if enough or not declared.override else f"; going on: {declared.override}"
    return Check(
        "usable examples",
        enough or bool(declared.override),
        f"at least {declared.min_examples}",
        f"{facts.usable} of {facts.raw} raw rows{reason}",
        value=facts.usable,
    )


def _memory(figures: Estimate, machine: Machine) -> Check:
    need = figures.memory_mb["lora"]
    observed = f"about {need:.0f} MB needed, {machine.free_mb:.0f} MB free"
    return Check("fits into this machine's memory", need <= machine.free_mb, "LoRA fits", observed, "warning", need)


def _facts(work: StageContext) -> Facts:
    raw, clean, base = (work.inputs[name] for name in ("raw_examples", "clean_examples", "base_model"))
    raw_rows = sum(1 for name in ("examples.jsonl", "drops.jsonl") for _ in read_jsonl(raw.path(name)))
    dropped = Counter(row["reason"] for row in read_jsonl(clean.path("drops.jsonl")))
    count = token_counter(folder_of(base, work.task.base, work.report))
    return gather(list(clean.examples()), raw_rows, dropped, work.task, count)


def _summary(facts: Facts, advice: Advice, figures: Estimate, declared: Suitability) -> Mapping[str, Json]:
    overridden = facts.usable < declared.min_examples
    return {
        "tool": advice.tool,
        "usable": facts.usable,
        "raw": facts.raw,
        "method": advice.method,
        "base_size": advice.size,
        "training_time": duration(figures.training_seconds),
        "training_cost": round(figures.training_cost, 2),
        "prompted_per_month": round(figures.prompted_per_month, 2),
        "tuned_per_month": round(figures.tuned_per_month, 2),
        "break_even_months": None if figures.break_even_months is None else round(figures.break_even_months, 1),
        "currency": declared.currency,
        **({"override": declared.override} if overridden else {}),
    }
