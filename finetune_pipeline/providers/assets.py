"""The asset `adapter` when `train.provider` is declared: a model at the provider, and the gate `learns_and_converges`.

    provider.json    record.ProviderRecord: which model, made from which files by which job, at what price, and events
    training.json    record.ProviderTraining
    history.jsonl    the provider's metrics by step (events.py)

The gate is about the provider's own figures. Where it reports no validation loss, that check is a warning which says
so: whether the model learned is then shown by the evaluation on the test rows alone.
"""

from __future__ import annotations

import math
from pathlib import Path

from finetune_pipeline.backends import local
from finetune_pipeline.config import Provider
from finetune_pipeline.config.section import flat
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.models.model_source import folder_of
from finetune_pipeline.providers.cancel import cancel_job
from finetune_pipeline.providers.record import ProviderTraining
from finetune_pipeline.providers.spec import ProviderSpec
from finetune_pipeline.records import Artifact, Check, Json, Verdict
from finetune_pipeline.records.revisions import split_name
from finetune_pipeline.store import StageContext, StageResult

JOB = "finetune_pipeline.providers.job"
ROWS = {"train": "train.jsonl", "validation": "validation.jsonl"}


def provider_adapter(context: StageContext, provider: Provider) -> StageResult:
    """Train at the provider, or go on with the job of an interrupted run with the same key."""
    folder = context.store.unfinished("adapter", "provider", context.key)
    spec = provider_spec(context, provider, folder)
    try:
        training = local.run(JOB, spec, ProviderTraining, folder, context.report)
    except BaseException as error:  # also Ctrl-C and Dagster's interruption, which are no Exception
        if isinstance(error, JobCanceled) or not isinstance(error, Exception):
            cancel_job(spec, context.report)
        raise
    summary: dict[str, Json] = {name: value for name, value in training.to_json().items() if value is not None}
    return StageResult(
        summary, evaluate_training(training, context.inputs["data_split"].content_hash), unfinished=folder
    )


def provider_spec(context: StageContext, provider: Provider, folder: Path) -> ProviderSpec:
    """What the job's process is told."""
    task, split, base = context.task, context.inputs["data_split"], context.inputs["base_model"]
    number = _finished(context)
    return ProviderSpec(
        task=task.name,
        provider=provider,
        rows=_rows(split),
        base=folder_of(base, task.base, context.report).absolute(),
        system=task.prompt.system,
        seed=task.train.seed,
        label=f"{task.name}/{context.key}/{number}",
        folder=(folder / str(number)).absolute(),
        out=context.out.absolute(),
        params={**flat(provider.model_dump(mode="json"), "provider."), "base": provider.model, "key": context.key},
        dataset_name=f"{task.name}/data_split",
        dataset_digest=split.content_hash,
    )


def evaluate_training(training: ProviderTraining, about: str) -> Verdict:
    """The gate, from the provider's figures. `about`: content hash of the split."""
    last = training.loss_last
    if last is None:
        finite = Check("the loss is finite", False, "a number", "the provider reported no loss", "warning")
    else:
        finite = Check("the loss is finite", math.isfinite(last), "a number", f"{last:.4f}", value=last)
    checks = (finite, _validation_check(training))
    passed = all(check.passed for check in checks if check.severity == "error")
    tokens = "an unknown number of" if training.trained_tokens is None else f"{training.trained_tokens:,}"
    price = "" if training.cost is None else f", {training.cost:.2f} {training.currency}"
    summary = f"{training.provider_model}: {tokens} tokens trained{price}; {checks[1].name}: {checks[1].observed}"
    figures: dict[str, Json] = {"validation_loss": training.validation_loss, "steps": training.steps}
    return Verdict("adapter", passed, about, summary, checks, figures)


def _validation_check(training: ProviderTraining) -> Check:
    name, start, end = "the validation loss fell", training.validation_loss_start, training.validation_loss
    if start is None or end is None:
        observed = "not reported by the provider, so it is not shown here; the evaluation on the test rows shows it"
        return Check(name, False, "below its start", observed, "warning")
    observed = f"{end:.3f} ({training.validation_compared})"
    return Check(name, end < start, f"below {start:.3f}, its start", observed, value=end)


def _rows(split: Artifact) -> dict[str, Path]:
    return {name: split.path(file).absolute() for name, file in ROWS.items() if split.path(file).exists()}


def _finished(context: StageContext) -> int:
    """How many models of this key are finished: a forced run trains anew, an interrupted one goes on."""
    return sum(split_name(str(manifest["key"]))[0] == context.key for manifest in context.store.manifests("adapter"))
