"""The asset `adapter`: one training in a separate process, and the gate `learns_and_converges`.

The gate is about the split that was learned: the audit passed before the first step, the loss stayed finite and did
not diverge (both stop the job), and the validation loss fell. Checkpoints are kept beside the artifacts until the
training has finished; another run with the same key resumes from them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import launch
from finetune_pipeline.backends.deployment import backend_for
from finetune_pipeline.config import Backend
from finetune_pipeline.config.section import flat
from finetune_pipeline.models.model_source import folder_of
from finetune_pipeline.models.trained_weights import Method
from finetune_pipeline.providers.assets import provider_adapter
from finetune_pipeline.records import Check, Json, Verdict
from finetune_pipeline.store import StageContext, StageResult
from finetune_pipeline.train.defaults import with_defaults
from finetune_pipeline.train.history import describe
from finetune_pipeline.train.objective import objective_of, require_rows
from finetune_pipeline.train.search.choice import choice_of
from finetune_pipeline.train.search.space import applied
from finetune_pipeline.train.spec import SearchChoice, TrainingResult, TrainingSpec

JOB = "finetune_pipeline.train.job"


def adapter(context: StageContext) -> StageResult:
    """Train, or resume from the last checkpoint with the same key. The files of the artifact are listed in job.py, or
    in providers/assets.py where a managed provider is declared."""
    if context.task.train.provider is not None:
        return provider_adapter(context, context.task.train.provider)
    rules = context.task.train
    backend = backend_for(rules.backend)
    split = context.inputs["data_split"]
    require_rows(split.examples("train.jsonl"), split.examples("validation.jsonl"), objective_of(rules))
    job = context.store.unfinished("adapter", "checkpoints", context.key)
    spec = training_spec(context, job, choice_of(context.inputs["training_search"]))
    spec = replace(spec, shard=shards(backend, rules.method))
    training = launch.run(JOB, spec, TrainingResult, job, context.report, backend, rules.threads)
    summary: dict[str, Json] = {
        "method": training.method,
        "objective": training.objective,
        "learning_rate": training.learning_rate,
        "steps": training.steps,
        "kept_step": training.kept_step,
        "seconds": training.seconds,
        "tokens_per_second": training.tokens_per_second,
        "loss_first": training.loss_first,
        "loss_last": training.loss_last,
        "validation_loss": training.validation_loss,
        "validation_score": training.validation_score,
        "overfits_from": training.overfits_from,
        "precision": training.precision,
        "backend": backend.kind,
        "processes": training.processes,
        "peak_mb": training.peak_mb,
        "mlflow_run_id": training.mlflow_run_id,
        "mlflow_experiment_id": training.mlflow_experiment_id,
        "resumed_at": training.resumed_at,
    }
    return StageResult(summary, evaluate_training(training, split.content_hash), unfinished=job)


def evaluate_training(training: TrainingResult, about: str) -> Verdict:
    """The gate of a finished training: the loss is finite, and the validation loss of the kept weights is lower than
    before training. Overfitting is a warning. `about`: content hash of the split."""
    start, end = training.validation_loss_start, training.validation_loss
    checks = (
        Check(
            "the loss is finite",
            math.isfinite(training.loss_last),
            "a number",
            f"{training.loss_last:.4f}",
            value=training.loss_last,
        ),
        Check(
            "the validation loss fell",
            end < start,
            f"below {start:.3f}, its start",
            f"{end:.3f} at the kept step {training.kept_step}",
            value=end,
        ),
        _overfitting(training),
    )
    passed = all(check.passed for check in checks if check.severity == "error")
    summary = f"validation loss {start:.3f} to {end:.3f} in {training.kept_step} steps, {training.seconds:.0f} s"
    summary += f"; {describe(training)}" if training.overfits_from is not None else ""
    return Verdict("adapter", passed, about, summary, checks, {"validation_loss": end, "steps": training.steps})


def _overfitting(training: TrainingResult) -> Check:
    """A warning: the kept weights are judged by their validation loss, whatever came after them."""
    expected = "the validation loss does not rise while the training loss falls"
    last = training.validation_loss if training.validation_loss_last is None else training.validation_loss_last
    observed = describe(training) or f"lowest at step {training.kept_step}, {last:.3f} at the end"
    return Check("no overfitting", training.overfits_from is None, expected, observed, "warning", value=last)


def shards(backend: Backend, method: Method) -> bool:
    """Whether each process holds a part of the weights: full weights do not fit on one device otherwise."""
    return backend.shard == "always" or (backend.shard == "auto" and method == "full")


def training_spec(context: StageContext, job: Path, choice: SearchChoice | None = None) -> TrainingSpec:
    """The declared training, with the settings that a search chose, and checkpoints in the folder `job`."""
    task, split, base = context.task, context.inputs["data_split"], context.inputs["base_model"]
    facts = base.json("base_model.json")
    base_id = str(facts["id"])
    values = choice.values if choice else {}
    rules, origins = with_defaults(applied(task.train, values), int(facts["parameters"]))
    if choice:
        origin = f"training_search, trial {choice.trial}: the best of {choice.trials} by validation {choice.metric}"
        origins |= dict.fromkeys(values, origin)
    return TrainingSpec(
        task=task.name,
        base=folder_of(base, task.base, context.report),
        base_id=base_id,
        train=split.path("train.jsonl").absolute(),
        validation=split.path("validation.jsonl").absolute(),
        system=task.prompt.system,
        answer=task.answer,
        rules=rules,
        checkpoints=job / "steps",
        out=context.out.absolute(),
        params={**flat(rules.model_dump(mode="json")), "base": base_id, "key": context.key, **_chosen(choice)},
        dataset_name=f"{task.name}/data_split",
        dataset_digest=split.content_hash,
        origins=origins,
        share=float(values.get("row_share", 1.0)),
        without_sources=tuple(values.get("without_sources", ())),
        choice=choice,
        base_sha256=str(facts["weights_sha256"]),
    )


def _chosen(choice: SearchChoice | None) -> dict[str, Any]:
    """What came from the search, for MLflow: the values, and which trial they are from."""
    if choice is None:
        return {}
    about = {"search": choice.search, "search.trial": choice.trial, "search.trials": choice.trials}
    return {**choice.values, **about, "search.chosen": ", ".join(choice.values)}
