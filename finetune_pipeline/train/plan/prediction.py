"""The plan from what was counted and measured. Pure.

plan = predict(spec, outline, "packed", counted, device, probe, unmeasured="")      # probe None: nothing was measured
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.gpu_fit import gpu_fits
from finetune_pipeline.models.trained_weights import Method
from finetune_pipeline.models.training_fit import Fit, fits_by_method, fitting_adapter, largest_tokens
from finetune_pipeline.models.training_memory import Setting
from finetune_pipeline.models.training_work import forward_flops, training_work
from finetune_pipeline.train.checkpoint import KEPT
from finetune_pipeline.train.outline import Outline
from finetune_pipeline.train.plan.loads import Counted
from finetune_pipeline.train.plan.spec import Device, PlanSpec, Probe, Times, TrainingPlan

START_SECONDS = 15.0  # of a process until its first step, where it was not measured


def predict(
    spec: PlanSpec,
    outline: Outline,
    forward: str,
    counted: Counted,
    device: Device,
    probe: Probe | None,
    unmeasured: str,
) -> TrainingPlan:
    """`forward`: "packed" or "padded" rows."""
    rules, architecture = spec.training.rules, outline.architecture
    setting = Setting(device.kind, device.precision == "bf16", forward, devices=device.processes, parts=counted.parts)
    passes, available = (counted.largest, counted.longest), device.available_mb
    fits = fits_by_method(architecture, rules, setting, *passes, available, spec.sharded)
    own = fits[rules.method] = _with_measured(fits[rules.method], probe)
    devices = device.processes if rules.method in spec.sharded else 1
    setting = replace(setting, checkpointing=own.checkpointing, devices=devices)
    most = largest_tokens(architecture, rules, setting, *passes, available)
    times = _times(architecture, rules, counted, device, probe, own.checkpointing)
    recommended, why = recommend(rules.method, fits, available)
    return TrainingPlan(
        device=device,
        method=rules.method,
        objective=rules.objective,
        forward=forward,
        rows=len(outline.rows["train"]),
        validation_rows=len(outline.rows["validation"]),
        steps=counted.steps,
        validations=counted.validations,
        tokens=counted.loads.steps.tokens / counted.steps,
        micro_batches=counted.parts,
        pass_tokens=counted.largest.tokens,
        fit=own,
        most_tokens=min(most, probe.max_tokens) if most and probe and probe.ran_out else most,
        fits=fits,
        gpus=gpu_fits(architecture, rules, forward, *passes, counted.loads, spec.gpu_per_hour),
        times=times,
        cost=times.total / 3600 * spec.per_hour * device.nodes,
        checkpoints_mb=_checkpoints_mb(architecture, rules),
        recommended=recommended,
        recommended_why=why,
        probe=probe,
        unmeasured=unmeasured,
    )


def _times(
    architecture: Architecture,
    rules: Train,
    counted: Counted,
    device: Device,
    probe: Probe | None,
    checkpointing: bool,
) -> Times:
    """At the measured speed, in which gradient checkpointing is included; else at that of matrix products. Processes
    share the work, without what they wait for each other."""
    work = training_work(architecture, rules, counted.loads)
    base = forward_flops(architecture, rules, counted.loads.base)
    steps = work.steps + (work.recomputed if checkpointing and probe is None else 0.0)
    step_speed = (probe.step_gflops * 1e9 if probe else device.expected_speed) * device.together
    pass_speed = (probe.pass_gflops * 1e9 if probe and probe.pass_gflops else device.expected_speed) * device.together
    answers = probe.answers_seconds / device.together if probe else 0.0
    return Times(
        start=probe.start_seconds if probe else START_SECONDS,
        base=base / pass_speed,
        steps=steps / step_speed,
        validation=(work.passes - base) / pass_speed + counted.validations * answers,
    )


def _with_measured(fit: Fit, probe: Probe | None) -> Fit:
    """Memory that ran out in the measured steps counts more than what was predicted: the training goes on in smaller
    parts."""
    if probe is None or not probe.ran_out:
        return fit
    return replace(fit, verdict="TIGHT" if fit.verdict == "FITS" else fit.verdict, tokens=float(probe.max_tokens))


def _checkpoints_mb(architecture: Architecture, rules: Train) -> float:
    """The most that the folder of a training holds: the checkpoints that are kept, one that is being written, and the
    best weights of each of them; all in fp32, the optimizer's state in bytes with `adamw_8bit`."""
    weights = architecture.trained_parameters(rules) * 4
    moments = architecture.trained_parameters(rules) * (2 if rules.optimizer == "adamw_8bit" else 8)
    best = weights if rules.validation.keep == "best" else 0
    return (KEPT + 1) * (weights + moments + best) / 1e6


def recommend(method: Method, fits: Mapping[str, Fit], available_mb: float) -> tuple[Method | None, str]:
    """The declared method where it fits, else the adapter that does; None where nothing fits. And why."""
    own = fits[method]
    need = f"{method} needs about {own.memory.total_mb:,.0f} MB, and {available_mb:,.0f} MB can be used"
    if own.verdict == "FITS":
        return method, f"as declared: {need}"
    adapter = fitting_adapter(fits)
    if adapter is not None and (own.verdict == "TOO BIG" or fits[adapter].verdict == "FITS") and adapter != method:
        return adapter, f"{need}; {adapter} needs about {fits[adapter].memory.total_mb:,.0f} MB"
    if own.verdict == "TIGHT":
        return method, f"as declared, and tight: {need}"
    return None, f"{need}: use a smaller base model, or a GPU that has enough"
