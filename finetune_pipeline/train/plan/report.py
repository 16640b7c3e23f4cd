"""report.html of a plan: memory, time, methods and GPUs as tables; and the same as one sentence. Loads nothing.

html = page(Heading("support_tickets", "SmolLM2-135M-Instruct", at, "USD"), plan)

Every figure is in plan.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import Provider
from finetune_pipeline.models.gpu_fit import gpu_rows
from finetune_pipeline.models.trained_weights import METHODS
from finetune_pipeline.providers.cost import TrainingCost
from finetune_pipeline.statistics.formatting import duration
from finetune_pipeline.train.plan.spec import TrainingPlan

Table = list[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands above the figures. `base`: the base model's name; `made_at`: UTC, ISO 8601; `currency`: of prices."""

    task: str
    base: str
    made_at: str
    currency: str


def page(heading: Heading, plan: TrainingPlan) -> str:
    """The whole page."""
    return _rendered(
        heading=heading,
        plan=plan,
        lead=headline(plan, heading.currency),
        memory=memory_rows(plan),
        times=time_rows(plan),
        methods=method_rows(plan),
        gpus=gpu_rows(plan.gpus, heading.currency),
        names=METHODS,
    )


def managed_page(heading: Heading, provider: Provider, rows: int, cost: TrainingCost) -> str:
    """The page where a provider trains: its cost."""
    epochs = f"{cost.epochs} epochs" + ("" if cost.epochs_declared else ", assumed: the provider chooses")
    lead = f"{provider.model} is trained by {provider.name} on {rows:,} rows: about {cost} ({epochs})."
    return _rendered(heading=heading, plan=None, lead=lead)


def _rendered(**values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune_pipeline.train.plan", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["count_text"] = "{:,.0f}".format
    text: str = environment.get_template("report.html.j2").render(**values)
    return text


def headline(plan: TrainingPlan, currency: str) -> str:
    """The plan in a sentence or two."""
    need, available = plan.fit.memory.total_mb, plan.device.available_mb
    text = f"{plan.fit.verdict}: {plan.method} needs about {need:,.0f} MB of {available:,.0f} MB, and takes about "
    text += f"{duration(plan.times.total)} for {plan.steps:,} steps"
    if plan.cost:
        text += f" ({plan.cost:.2f} {currency})"
    if plan.recommended != plan.method:
        text += f". Recommended: {plan.recommended or 'a smaller base model, or another device'}"
    return text + "."


def memory_rows(plan: TrainingPlan) -> Table:
    """Part and MB; the measured peak last, where the training was measured."""
    rows: Table = [(name, f"{mb:,.0f}") for name, mb in plan.fit.memory.parts.items() if round(mb)]
    rows.append(("predicted peak", f"{plan.fit.memory.total_mb:,.0f}"))
    if plan.probe and plan.probe.ran_out:
        rows.append(("memory ran out: tokens in a pass, from then on", f"{plan.probe.max_tokens:,}"))
    if plan.probe:
        largest = "with the largest batch" if plan.probe.largest else "without the largest batch"
        rows.append((f"measured peak of {plan.probe.steps} steps, {largest}", f"{plan.probe.peak_mb:,.0f}"))
    return rows


def time_rows(plan: TrainingPlan) -> Table:
    """Part, time, and what it is made of."""
    times, probe = plan.times, plan.probe
    step = times.steps / plan.steps
    rows: Table = [
        ("start", duration(times.start), "process, libraries, base model, checks"),
        ("steps", duration(times.steps), f"{plan.steps:,} steps of {step:,.2f} s, {plan.tokens:,.0f} tokens each"),
    ]
    if plan.validations:
        answered = f", {probe.answers_seconds:,.1f} s of each for answers" if probe and probe.answers_seconds else ""
        text = f"{plan.validations} times {plan.validation_rows:,} rows{answered}"
        rows.append(("validation", duration(times.validation), text))
    if times.base >= 1:
        rows.append(("before training", duration(times.base), "the base model on general texts and on preferences"))
    return [*rows, ("all", duration(times.total), _how(plan))]


def _how(plan: TrainingPlan) -> str:
    device, probe = plan.device, plan.probe
    processes = f", {device.processes} processes" if device.processes > 1 else ""
    peak = f"{device.gflops:,.0f} GFLOP/s for a matrix product in {device.precision}{processes}"
    if probe is None:
        return f"from the speed of the {device.name} ({peak}); not measured, because {plan.unmeasured}"
    share = probe.step_gflops / device.gflops
    rows = f"{probe.steps} steps of {probe.rows} {'row' if probe.rows == 1 else 'rows'}"
    return f"measured on the {device.name}: {rows} took {probe.step_seconds:,.2f} s each, {share:.0%} of {peak}"


def method_rows(plan: TrainingPlan) -> Table:
    """Method, verdict, MB, and what it takes to fit."""
    rows: Table = []
    for method, fit in plan.fits.items():
        notes = ["gradient checkpointing"] if fit.checkpointing else []
        notes += [f"at most {fit.tokens:,.0f} tokens in a pass"] if fit.tokens < plan.pass_tokens else []
        declared = f"{method} (declared)" if method == plan.method else method
        rows.append((declared, fit.verdict, f"{fit.memory.total_mb:,.0f}", ", ".join(notes)))
    return rows
