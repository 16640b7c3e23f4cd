"""The asset `adapter`: one training in a process of its own, its checkpoints beside the artifacts until it is done.

The verdict `learns_and_converges` is about the split it learned from: what is learned was audited before the first
step, the loss stayed finite and did not diverge, and the validation loss fell.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import local
from finetune_pipeline.base_model import folder_of
from finetune_pipeline.materialise import Outcome, Work
from finetune_pipeline.records import Check, Verdict
from finetune_pipeline.store import home

SHOWN = ("steps", "seconds", "tokens_per_second", "loss_first", "loss_last", "validation_loss", "precision", "peak_mb")


def adapter(work: Work) -> Outcome:
    """Train, or go on from the last checkpoint of this very work (same key). See job.py for what is left behind."""
    job = _job_folder(work)
    spec = _spec(work, job)
    training = local.run("finetune_pipeline.train.job", spec, job, work.report, work.task.train.threads)
    shown = {name: training[name] for name in SHOWN}
    summary = {**shown, "mlflow_run_id": training["mlflow_run_id"], "resumed_at": training["resumed_at"]}
    return Outcome(summary, judge(training, work.inputs["data_split"].content), unfinished=job)


def judge(training: dict[str, Any], about: str) -> Verdict:
    """Did it learn? (The audit and divergence stop the job itself; what is left is to compare start and end.)"""
    start, end = training["validation_loss_start"], training["validation_loss"]
    checks = (
        Check("the loss is finite", math.isfinite(training["loss_last"]), "a number", f"{training['loss_last']:.4f}"),
        Check("the validation loss fell", end < start, f"below {start:.3f}, where it began", f"{end:.3f}"),
    )
    passed = all(check.passed for check in checks)
    seconds, steps = training["seconds"], training["steps"]
    summary = f"validation loss {start:.3f} to {end:.3f} in {steps} steps, {seconds:.0f} s"
    return Verdict("adapter", passed, about, summary, checks, {"validation_loss": end, "steps": steps})


def _job_folder(work: Work) -> Path:
    """Where the job and its checkpoints live: with the task, or in the home folder when that is an object store."""
    if work.store.is_local:
        return work.store.local_root / "6_adapter" / "checkpoints" / work.key
    return home() / "checkpoints" / work.store.task / work.key


def _spec(work: Work, job: Path) -> dict[str, Any]:
    task, split, base = work.task, work.inputs["data_split"], work.inputs["base_model"]
    rules = task.train.model_dump(mode="json")
    return {
        "base": str(folder_of(base, task.base, work.report)),
        "base_id": base.json("base_model.json")["id"],
        "train": str(split.path("train.jsonl").absolute()),
        "validation": str(split.path("validation.jsonl").absolute()),
        "system": task.prompt.system,
        "rules": rules,
        "checkpoints": str(job / "steps"),
        "out": str(work.out.absolute()),
        "task": task.name,
        "params": {**rules, "base": base.json("base_model.json")["id"], "key": work.key},
        "data": {"name": f"{task.name}/data_split", "digest": split.content},
    }
