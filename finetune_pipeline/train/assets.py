"""The asset `adapter`: one training in a process of its own, its checkpoints beside the artifacts until it is done.

The verdict `learns_and_converges` is about the split it learned from: what is learned was audited before the first
step, the loss stayed finite and did not diverge, and the validation loss fell.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import local
from finetune_pipeline.models.base_model import folder_of
from finetune_pipeline.records import Check, Verdict
from finetune_pipeline.store import StageContext, StageResult

SHOWN = ("steps", "seconds", "tokens_per_second", "loss_first", "loss_last", "validation_loss", "precision", "peak_mb")


def adapter(context: StageContext) -> StageResult:
    """Train, or go on from the last checkpoint of this very work (same key). See job.py for what is left behind."""
    job = context.store.unfinished("adapter", "checkpoints", context.key)
    spec = _spec(context, job)
    training = local.run("finetune_pipeline.train.job", spec, job, context.report, context.task.train.threads)
    shown = {name: training[name] for name in SHOWN}
    summary = {**shown, "mlflow_run_id": training["mlflow_run_id"], "resumed_at": training["resumed_at"]}
    return StageResult(summary, evaluate_training(training, context.inputs["data_split"].content_hash), unfinished=job)


def evaluate_training(training: dict[str, Any], about: str) -> Verdict:
    """Did it learn? (The audit and divergence stop the job itself; what is left is to compare start and end.)"""
    start, end, last = (training[name] for name in ("validation_loss_start", "validation_loss", "loss_last"))
    checks = (
        Check("the loss is finite", math.isfinite(last), "a number", f"{last:.4f}", value=last),
        Check("the validation loss fell", end < start, f"below {start:.3f}, where it began", f"{end:.3f}", value=end),
    )
    passed = all(check.passed for check in checks)
    seconds, steps = training["seconds"], training["steps"]
    summary = f"validation loss {start:.3f} to {end:.3f} in {steps} steps, {seconds:.0f} s"
    return Verdict("adapter", passed, about, summary, checks, {"validation_loss": end, "steps": steps})


def _spec(context: StageContext, job: Path) -> dict[str, Any]:
    task, split, base = context.task, context.inputs["data_split"], context.inputs["base_model"]
    rules = task.train.model_dump(mode="json")
    return {
        "base": str(folder_of(base, task.base, context.report)),
        "base_id": base.json("base_model.json")["id"],
        "train": str(split.path("train.jsonl").absolute()),
        "validation": str(split.path("validation.jsonl").absolute()),
        "system": task.prompt.system,
        "rules": rules,
        "checkpoints": str(job / "steps"),
        "out": str(context.out.absolute()),
        "task": task.name,
        "params": {**rules, "base": base.json("base_model.json")["id"], "key": context.key},
        "data": {"name": f"{task.name}/data_split", "digest": split.content_hash},
    }
