"""The process of a managed training: check, upload, create the job, follow it, record it; one MLflow run.

    python -m finetune_pipeline.providers.job job.json        # a ProviderSpec

It computes nothing, so it does not hold this machine's lock for computing. Canceled, it cancels the provider's job;
when its parent was killed instead, the provider's job goes on, and the next run of the task finds it again.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_pipeline.backends import worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Provider
from finetune_pipeline.errors import DataError, FinetuneError, JobCanceled, ModelError, TrainingFailed
from finetune_pipeline.models.model_files import token_counter
from finetune_pipeline.providers import cost
from finetune_pipeline.providers.connection import Connection, api_call, connect, connection_of
from finetune_pipeline.providers.events import EventLog, HistoryLine, JobEvent, history, validation_change
from finetune_pipeline.providers.record import FILE, ProviderRecord, ProviderTraining
from finetune_pipeline.providers.rows import Line, Prepared, preference_line, prepare, require_accepted, supervised_line
from finetune_pipeline.providers.state import ProviderState
from finetune_pipeline.providers.transfer import JobRequest, created, pause, uploaded
from finetune_pipeline.records import Example, Reporter, read_jsonl, write_jsonl
from finetune_pipeline.store import machine_lock, sha256_file

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

ENDED = ("succeeded", "failed", "cancelled")
CANCEL_SECONDS = 10.0
LINE = re.compile(r"(?:line|row|example)s?\s+#?(\d+)", re.I)


@dataclass(frozen=True)
class ProviderSpec(JobData):
    """All paths are absolute. `rows`: split ("train", "validation") -> file of examples; `base`:
    folder of the local base model, for its tokenizer; `label` identifies this training at the provider; `parent` is
    the id of the process that waits for the job; `params`: what the MLflow run shows."""

    task: str
    provider: Provider
    rows: dict[str, Path]
    base: Path
    system: str
    seed: int
    label: str
    folder: Path
    out: Path
    parent: int
    params: dict[str, Any]
    dataset_name: str
    dataset_digest: str


def run(spec: ProviderSpec, report: Reporter) -> ProviderTraining:
    """Train one model at the provider. DataError when it would refuse the rows or the cost is above the limit,
    ModelError, ServingError, TrainingFailed, DeclarationError, JobCanceled."""
    where = connection_of(spec.provider)
    busy = "the job of an earlier run still ends; waiting for it"
    with machine_lock(f"provider.{spec.label.replace('/', '.')}", report, busy):
        files = _prepare(spec)
        for file in files.values():
            require_accepted(file)
        estimate = cost.estimate(files["train"].tokens, len(files["train"].ids), spec.provider)
        report.log(_announcement(estimate, spec))
        cost.require_within(estimate, spec.provider)
        client = connect(where)
        with api_call("list the models", where):
            _require_model(client, spec.provider.model, report)
        return _train(spec, client, where, files, estimate, report)


def _train(
    spec: ProviderSpec,
    client: OpenAI,
    where: Connection,
    files: Mapping[str, Prepared],
    estimate: cost.TrainingCost,
    report: Reporter,
) -> ProviderTraining:
    from finetune_pipeline import tracking

    state = ProviderState.load(spec.folder)
    log = EventLog(spec.folder / "events_of_job.jsonl")
    with tracking.training_run(spec.task, state.run_id, spec.params, {"data": spec.dataset_digest}) as mlflow_run:
        if state.run_id is None:
            mlflow_run.log_dataset(spec.dataset_name, spec.dataset_digest, len(files["train"].ids))
        state.run_id, state.experiment_id = mlflow_run.run_id, mlflow_run.experiment_id
        state.save()
        earlier = state.job
        try:
            job = _start(spec, client, where, files, state, report)
            job = _follow(client, where, job, log, spec.provider.poll_seconds, mlflow_run, report)
        except JobCanceled:
            _cancel(spec, client, where, state, report)
            raise
        _require_success(job, log.events, files, where)
        with api_call(f"list the checkpoints of job {job.id}", where):
            lines = history(log.events, _checkpoints(client, job.id))
        result = _write(spec, where, job, files, estimate, lines, log, state, earlier == job.id)
        mlflow_run.log_metrics({"trained_tokens": job.trained_tokens or 0, "cost": result.cost or 0.0}, result.steps)
        mlflow_run.log_artifacts(spec.out, "adapter")
    return result


def _prepare(spec: ProviderSpec) -> dict[str, Prepared]:
    """The files as they will be uploaded; a split without rows is left out, but for "train"."""
    spec.folder.mkdir(parents=True, exist_ok=True)
    count = token_counter(spec.base)
    prepared = {}
    for split, path in spec.rows.items():
        least = spec.provider.min_examples if split == "train" else 1
        file = prepare(spec.folder / f"{split}.jsonl", _lines(path, spec), spec.provider, count, least)
        if file.ids or split == "train":
            prepared[split] = file
    if spec.provider.method == "dpo" and not prepared["train"].ids:
        raise DataError(
            "no training row has a rejected completion, which `train.provider.method: dpo` needs",
            "add sources with preference rows (prompt, chosen, rejected), or declare `method: supervised`",
        )
    return prepared


def _lines(path: Path, spec: ProviderSpec) -> Iterator[Line]:
    """The rows of a split; for DPO those with a rejected completion only."""
    for plain in read_jsonl(path):
        row = Example.from_json(plain)
        if spec.provider.method != "dpo":
            yield supervised_line(row, spec.system)
        elif plain.get("rejected") is not None:
            yield preference_line(row, str(plain["rejected"]), spec.system)


def _announcement(estimate: cost.TrainingCost, spec: ProviderSpec) -> str:
    epochs = f"{estimate.epochs} epochs" + ("" if estimate.epochs_declared else " (assumed: the provider chooses)")
    return (
        f"estimate before the upload: {estimate}, {epochs}; tokens are counted with the tokenizer of {spec.base.name}, "
        "the provider's own count may differ"
    )


def _require_model(client: OpenAI, model: str, report: Reporter) -> None:
    """ModelError when the provider lists its models and this one is not among them. Also the first use of the key."""
    import openai

    try:
        names = [entry.id for entry in client.models.list()]
    except openai.NotFoundError:
        report.log("the provider lists no models, so the name of the model is not checked before the upload")
        return
    if model not in names:
        near = ", ".join(sorted(name for name in names if name.split("-")[0] == model.split("-")[0])[:8])
        raise ModelError(
            f"the provider has no model {model!r}",
            f"set `train.provider.model` to one that it can tune{f', such as {near}' if near else ''}; nothing was "
            "uploaded",
        )


def _start(
    spec: ProviderSpec,
    client: OpenAI,
    where: Connection,
    files: Mapping[str, Prepared],
    state: ProviderState,
    report: Reporter,
) -> FineTuningJob:
    """Upload what is not uploaded, and create the job if there is none; every id is saved at once."""
    for split, file in files.items():
        name = f"{spec.task}-{split}-{sha256_file(file.path)[:16]}.jsonl"
        state.files[split] = uploaded(client, where, file, name, state.files.get(split), report)
        state.save()
    job = created(client, where, JobRequest(spec.label, _arguments(spec, state)), state, report)
    if state.job != job.id:
        report.log(f"job {job.id} trains {job.model} at {where.url}")
    state.job = job.id
    state.save()
    return job


def _arguments(spec: ProviderSpec, state: ProviderState) -> dict[str, Any]:
    provider = spec.provider
    declared = provider.hyperparameters.model_dump(exclude_none=True)
    chosen = {name: value for name, value in declared.items() if value != "auto"}
    method: dict[str, Any] = {"type": provider.method}
    if chosen:
        method[provider.method] = {"hyperparameters": chosen}
    arguments: dict[str, Any] = {
        "model": provider.model,
        "training_file": state.files["train"],
        "method": method,
        "seed": spec.seed,
        "suffix": provider.suffix or spec.task.replace("_", "-")[:64],
    }
    return arguments | ({"validation_file": state.files["validation"]} if "validation" in state.files else {})


def _follow(
    client: OpenAI,
    where: Connection,
    job: FineTuningJob,
    log: EventLog,
    seconds: float,
    mlflow_run: Any,
    report: Reporter,
) -> FineTuningJob:
    """Pass the job's events on until it has ended."""
    status = ""
    while True:
        with api_call(f"look at job {job.id}", where):
            job = client.fine_tuning.jobs.retrieve(job.id)
            new = log.fetch(client, job.id)
        for event in new:
            _report(event, mlflow_run, report)
        if job.status in ENDED:
            return job
        if job.status != status:
            status = job.status
            report.log(f"job {job.id}: {status.replace('_', ' ')}")
        pause(seconds, report)


def _report(event: JobEvent, mlflow_run: Any, report: Reporter) -> None:
    if event.step is None or not event.metrics:
        report.log(f"provider: {event.message}")
        return
    total = event.data.get("total_steps")
    report.progress(
        "training at the provider",
        event.step,
        int(total) if isinstance(total, int | float) else event.step,
        **event.metrics,
    )
    mlflow_run.log_metrics(event.metrics, event.step)


def _cancel(spec: ProviderSpec, client: OpenAI, where: Connection, state: ProviderState, report: Reporter) -> None:
    """Cancel the provider's job, unless the run did not ask for it: its process was killed, and is to be resumed."""
    if state.job is None:
        return
    if os.getppid() != spec.parent:
        report.log(f"the run was killed; job {state.job} goes on at the provider, and the next run finds it")
        return
    quick = client.with_options(max_retries=1, timeout=CANCEL_SECONDS)
    try:
        with api_call(f"cancel job {state.job}", where):
            quick.fine_tuning.jobs.cancel(state.job)
    except FinetuneError as error:
        raise type(error)(
            error.message, f"cancel job {state.job} at the provider: it may still train and cost"
        ) from None
    report.log(f"job {state.job} is canceled at the provider; the uploaded files are kept for the next run")


def _require_success(
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


def _checkpoints(client: OpenAI, job: str) -> list[tuple[int, dict[str, Any]]]:
    """Step and figures of each checkpoint; none where the provider keeps none."""
    import openai

    try:
        listed = list(client.fine_tuning.jobs.checkpoints.list(job))
    except openai.NotFoundError:
        return []
    return [(each.step_number, each.metrics.model_dump(exclude_none=True, exclude={"step"})) for each in listed]


def _write(
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
    epochs = job.hyperparameters.n_epochs if job.hyperparameters else None
    price = cost.actual(job.trained_tokens, epochs if isinstance(epochs, int) else None, spec.provider)
    record = ProviderRecord(
        provider=spec.provider,
        base_url=where.url,
        model=str(job.fine_tuned_model),
        job=job.id,
        files=dict(state.files),
        trained_tokens=job.trained_tokens,
        estimate=estimate,
        cost=price,
        created_at=job.created_at,
        finished_at=job.finished_at,
        checks=[{"file": split, **asdict(check)} for split, file in files.items() for check in file.checks],
        events=[asdict(event) for event in log.events],
    )
    losses = [line["loss"] for line in lines if "loss" in line]
    change = validation_change(lines)
    result = ProviderTraining(
        mlflow_run_id=state.run_id,
        mlflow_experiment_id=state.experiment_id,
        provider=spec.provider.name,
        provider_model=record.model,
        steps=int(lines[-1]["step"]) if lines else 0,
        seconds=float((job.finished_at or job.created_at) - job.created_at),
        rows=len(files["train"].ids),
        loss_first=losses[0] if losses else None,
        loss_last=sum(losses[-5:]) / len(losses[-5:]) if losses else None,
        validation_loss_start=change[0] if change else None,
        validation_loss=change[1] if change else None,
        validation_compared=change[2] if change else "not reported by the provider",
        trained_tokens=job.trained_tokens,
        cost=price.cost,
        cost_estimated=estimate.cost,
        currency=price.currency,
        resumed=resumed,
    )
    (spec.out / FILE).write_text(json.dumps(record.to_json(), indent=1, ensure_ascii=False), "utf-8")
    (spec.out / "training.json").write_text(json.dumps(result.to_json(), indent=1), "utf-8")
    write_jsonl(spec.out / "history.jsonl", lines)
    return result


if __name__ == "__main__":
    worker.main(run, ProviderSpec, computes=False)
