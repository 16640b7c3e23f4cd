"""The end of a job: its error with the rows that it names, or the files of the artifact.

require_success(job, log.events, files, where)       # TrainingFailed: the provider refused train.jsonl: …
write_artifact(spec, where, job, files, estimate, lines, log, state, resumed=False)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.providers import cost
from finetune_pipeline.providers.connection import Connection
from finetune_pipeline.providers.events import EventLog, HistoryLine, JobEvent, validation_change
from finetune_pipeline.providers.record import FILE, ProviderRecord, ProviderTraining
from finetune_pipeline.providers.rows import Prepared
from finetune_pipeline.providers.spec import ProviderSpec
from finetune_pipeline.providers.state import ProviderState
from finetune_pipeline.records import write_jsonl

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

LINE = re.compile(r"(?:line|row|example)s?\s+#?(\d+)", re.I)


def require_success(
    job: FineTuningJob, events: list[JobEvent], files: Mapping[str, Prepared], where: Connection
) -> None:
    """TrainingFailed with the provider's reason, and the rows that it names."""
    if job.status == "cancelled":
        raise TrainingFailed(f"job {job.id} was canceled at the provider", "run again to create a new job")
    if job.status == "succeeded" and job.fine_tuned_model:
        return
    errors = [event.message for event in events if event.level == "error"]
    reason = (job.error.message if job.error and job.error.message else "") or next(
        iter(errors[::-1]), "no reason given"
    )
    if job.error is None or job.error.param not in ("training_file", "validation_file"):
        raise TrainingFailed(
            f"job {job.id} ended as {job.status}: {where.hide(reason)}",
            "read the provider's reason; run again to create a new job with the files that are already uploaded",
        )
    file = files["train" if job.error.param == "training_file" else "validation"]
    raise TrainingFailed(
        f"the provider refused {file.path.name}: {where.hide(reason)}{_rows_named(reason, file)}",
        "fix or drop these rows, and run again; nothing was trained",
    )


def _rows_named(reason: str, file: Prepared) -> str:
    """The ids of the rows whose line numbers are in the provider's reason."""
    numbers = sorted({int(number) for number in LINE.findall(reason)})
    ids = [f"line {number} is row {file.ids[number - 1]}" for number in numbers if 0 < number <= len(file.ids)]
    return f" ({', '.join(ids[:5])})" if ids else ""


def checkpoints(client: OpenAI, job: str) -> list[tuple[int, dict[str, Any]]]:
    """Step and figures of each checkpoint; none where the provider keeps none."""
    import openai

    try:
        listed = list(client.fine_tuning.jobs.checkpoints.list(job))
    except openai.NotFoundError:
        return []
    return [(each.step_number, each.metrics.model_dump(exclude_none=True, exclude={"step"})) for each in listed]


def write_artifact(
    spec: ProviderSpec,
    where: Connection,
    job: FineTuningJob,
    files: Mapping[str, Prepared],
    estimate: cost.TrainingCost,
    lines: list[HistoryLine],
    log: EventLog,
    state: ProviderState,
    resumed: bool,
) -> ProviderTraining:
    """provider.json, training.json and history.jsonl."""
    record = _record(spec, where, job, files, estimate, log, state)
    result = _training(job, record, len(files["train"].ids), lines, state, resumed)
    (spec.out / FILE).write_text(json.dumps(record.to_json(), indent=1, ensure_ascii=False), "utf-8")
    (spec.out / "training.json").write_text(json.dumps(result.to_json(), indent=1), "utf-8")
    write_jsonl(spec.out / "history.jsonl", lines)
    return result


def _record(
    spec: ProviderSpec,
    where: Connection,
    job: FineTuningJob,
    files: Mapping[str, Prepared],
    estimate: cost.TrainingCost,
    log: EventLog,
    state: ProviderState,
) -> ProviderRecord:
    hyperparameters = getattr(job, "hyperparameters", None)  # not every server returns them
    epochs = getattr(hyperparameters, "n_epochs", None)
    return ProviderRecord(
        provider=spec.provider,
        base_url=where.url,
        model=str(job.fine_tuned_model),
        job=job.id,
        files=dict(state.files),
        trained_tokens=job.trained_tokens,
        estimate=estimate,
        cost=cost.actual(job.trained_tokens, epochs if isinstance(epochs, int) else None, spec.provider),
        created_at=job.created_at,
        finished_at=job.finished_at,
        checks=[{"file": split, **asdict(check)} for split, file in files.items() for check in file.checks],
        events=[asdict(event) for event in log.events if not event.metrics],  # metrics are in history.jsonl
    )


def _training(
    job: FineTuningJob,
    record: ProviderRecord,
    rows: int,
    lines: list[HistoryLine],
    state: ProviderState,
    resumed: bool,
) -> ProviderTraining:
    losses = [line["loss"] for line in lines if "loss" in line]
    change = validation_change(lines)
    return ProviderTraining(
        mlflow_run_id=state.run_id,
        mlflow_experiment_id=state.experiment_id,
        provider=record.provider.name,
        provider_model=record.model,
        steps=int(lines[-1]["step"]) if lines else 0,
        seconds=float((job.finished_at or job.created_at) - job.created_at),
        rows=rows,
        loss_first=losses[0] if losses else None,
        loss_last=sum(losses[-5:]) / len(losses[-5:]) if losses else None,
        validation_loss_start=change[0] if change else None,
        validation_loss=change[1] if change else None,
        validation_compared=change[2] if change else "not reported by the provider",
        trained_tokens=job.trained_tokens,
        cost=record.cost.cost,
        cost_estimated=record.estimate.cost,
        currency=record.cost.currency,
        resumed=resumed,
    )
