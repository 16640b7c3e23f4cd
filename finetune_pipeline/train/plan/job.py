"""The process that plans a training: counts what it has to compute, runs a few steps of it, and predicts the rest.

    python -m finetune_pipeline.train.plan.job job.json        # a PlanSpec (spec.py)

It writes audit.json, tokens.json and tokens.html to the training's `out`, as the training itself does. The weights are
only loaded where the training fits into the memory of one device, and takes long enough to be worth a measurement.
"""

from __future__ import annotations

import shutil
import time

from finetune_pipeline.backends import worker
from finetune_pipeline.models.device import device_name, kind, name_of, reachable_mb, uses_bf16
from finetune_pipeline.models.gemm import gflops
from finetune_pipeline.models.training_fit import Fit, fit
from finetune_pipeline.models.training_memory import Setting
from finetune_pipeline.models.training_work import forward_flops, step_flops, training_work
from finetune_pipeline.records import Example, Reporter, read_jsonl
from finetune_pipeline.train.assembly import require_passed
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.memory_fit import largest_batches
from finetune_pipeline.train.objective import objective_of, require_rows
from finetune_pipeline.train.outline import Outline, outline_of
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.plan.loads import Counted, count, step_load
from finetune_pipeline.train.plan.prediction import predict
from finetune_pipeline.train.plan.probe import Sample, measure, sample_of
from finetune_pipeline.train.plan.spec import Device, PlanSpec, TrainingPlan
from finetune_pipeline.train.replay import replay_for
from finetune_pipeline.train.token_view import token_view, write_view

MEASURED_FROM = 60.0  # seconds of a training; shorter ones are estimated
SHARE, LEAST, MOST = 0.05, 15.0, 60.0  # of the training's seconds that its timed steps may take, and their limits


def run(spec: PlanSpec, report: Reporter) -> TrainingPlan:
    """Plan. TrainingFailed when there are no rows, or the audit fails; ModelError when the model cannot be trained."""
    import peft  # noqa: F401 (a training imports them as well: their time is a part of its start)
    import transformers  # noqa: F401

    began, training = time.monotonic(), spec.training
    examples = {
        name: [Example.from_json(row) for row in read_jsonl(path)]
        for name, path in (("train", training.train), ("validation", training.validation))
    }
    require_rows(examples["train"], examples["validation"], objective_of(training.rules))
    outline = outline_of(training.base, examples, training.system, training.rules)
    write_view(training.out, token_view(outline.rows["train"], outline.base.tokenizer, outline.texts), training.task)
    require_passed(outline.audit, training.out)
    device = _device(spec)
    forward: Forward = PackedForward(outline.base.model, outline.prefix)
    counted = _counted(spec, outline, forward, report)
    alone = _fit(spec, outline, forward, counted, device)
    work = training_work(outline.architecture, training.rules, counted.loads)
    expected = work.seconds(device.expected_speed, alone.checkpointing)
    probe, unmeasured = None, ""
    if alone.verdict == "TOO BIG":
        unmeasured = "it does not fit into the memory of this device"
    elif expected < MEASURED_FROM:
        unmeasured = f"it takes less than {MEASURED_FROM:.0f} seconds"
    else:
        budget = min(MOST, max(LEAST, SHARE * expected))
        sample = _sample(spec, outline, forward, counted, device.expected_speed, budget)
        probe, forward = measure(spec, outline, sample, time.monotonic() - began, report)
        if forward.name != PackedForward.name:
            counted = _counted(spec, outline, forward, report)
    return predict(spec, outline, forward.name, counted, device, probe, unmeasured)


def _device(spec: PlanSpec) -> Device:
    bf16 = uses_bf16(spec.training.rules.precision)
    return Device(
        kind=kind(),
        name=device_name(),
        precision=name_of(bf16),
        gflops=gflops(kind(), bf16),
        available_mb=reachable_mb(spec.processes_per_node),
        processes=spec.nodes * spec.processes_per_node,
        nodes=spec.nodes,
        disk_mb=shutil.disk_usage(spec.training.out).free / 1e6,
    )


def _counted(spec: PlanSpec, outline: Outline, forward: Forward, report: Reporter) -> Counted:
    rules, base = spec.training.rules, outline.base
    replay = replay_for(forward, base, rules, outline.texts, report)
    rows, validation = outline.rows["train"], outline.rows["validation"]
    bf16 = uses_bf16(rules.precision)
    return count(forward, outline.architecture, rules, bf16, rows, validation, replay, objective_of(rules))


def _fit(spec: PlanSpec, outline: Outline, forward: Forward, counted: Counted, device: Device) -> Fit:
    """On one device: the plan's process is alone."""
    bf16 = device.precision == "bf16"
    setting = Setting(device.kind, bf16, forward.name, parts=counted.parts)
    return fit(
        outline.architecture, spec.training.rules, setting, counted.largest, counted.longest, device.available_mb
    )


def _sample(
    spec: PlanSpec, outline: Outline, forward: Forward, counted: Counted, speed: float, budget: float
) -> Sample:
    rules, architecture = spec.training.rules, outline.architecture
    step = step_flops(architecture, rules, [counted.loads.steps]) / counted.steps / speed
    batch = largest_batches(outline.rows["train"], rules)[0]
    largest = step_flops(architecture, rules, [step_load(forward, batch, [], rules)]) / speed
    rows = len(outline.rows["validation"]) * counted.validations
    validation = forward_flops(architecture, rules, counted.loads.validation) / rows / speed if rows else 0.0
    return sample_of(min(rules.batch_size, len(outline.rows["train"])), step, largest, validation, budget)


if __name__ == "__main__":
    worker.main(run, PlanSpec)
