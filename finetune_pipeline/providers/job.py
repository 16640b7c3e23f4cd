"""The process of a managed training: check, upload, create the job, follow it, record it; one MLflow run.

    python -m finetune_pipeline.providers.job job.json        # a ProviderSpec

It computes nothing, so it does not hold this machine's lock for computing. Ended early, it leaves the provider's job
alone: a run that was canceled cancels it (cancel.py), a run that was killed finds it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_pipeline.backends import worker
from finetune_pipeline.errors import DataError, ModelError
from finetune_pipeline.models.model_files import token_counter
from finetune_pipeline.providers import cost
from finetune_pipeline.providers.connection import Connection, api_call, connect, connection_of
from finetune_pipeline.providers.events import EventLog, JobEvent, history
from finetune_pipeline.providers.outcome import checkpoints, require_success, write_artifact
from finetune_pipeline.providers.record import ProviderTraining
from finetune_pipeline.providers.rows import Prepared, lines_of, prepare, require_accepted
from finetune_pipeline.providers.spec import ProviderSpec
from finetune_pipeline.providers.state import ProviderState
from finetune_pipeline.providers.transfer import JobRequest, created, patiently, pause, uploaded
from finetune_pipeline.records import Example, Reporter, read_jsonl
from finetune_pipeline.store import machine_lock, sha256_file

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

ENDED = ("succeeded", "failed", "cancelled")


def run(spec: ProviderSpec, report: Reporter) -> ProviderTraining:
    """Train one model at the provider. DataError when it would refuse the rows or the cost is above the limit,
    ModelError, ServingError, TrainingFailed, DeclarationError, JobCanceled."""
    where = connection_of(spec.provider)
    busy = "the job of an earlier run still ends; waiting for it"
    # beside the lock of the folder: the same rows in another data root have this label, too, and find this job
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
    tags = {"data": spec.dataset_digest}
    with tracking.training_run(spec.task, state.run_id, spec.params, tags, report) as mlflow_run:
        if state.run_id is None:
            mlflow_run.log_dataset(spec.dataset_name, spec.dataset_digest, len(files["train"].ids))
        state.run_id, state.experiment_id = mlflow_run.run_id, mlflow_run.experiment_id
        state.save()
        earlier = state.job
        job = _start(spec, client, where, files, state, report)
        log = EventLog.of_job(spec.folder, job.id)
        job = _follow(client, where, job, log, spec.provider.poll_seconds, mlflow_run, report)
        require_success(job, log.events, files, where)
        listed = partial(checkpoints, client, job.id)
        action = f"list the checkpoints of job {job.id}"
        lines = history(log.events, patiently(listed, action, where, spec.provider.poll_seconds, report))
        state.run_id, state.experiment_id = mlflow_run.run_id, mlflow_run.experiment_id
        result = write_artifact(spec, where, job, files, estimate, lines, log, state, earlier == job.id)
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
        lines = lines_of(map(Example.from_json, read_jsonl(path)), spec.system, spec.provider)
        file = prepare(spec.folder / f"{split}.jsonl", lines, spec.provider, count, least)
        if file.ids or split == "train":
            prepared[split] = file
    if spec.provider.method == "dpo" and not prepared["train"].ids:
        raise DataError(
            "no training row has a rejected completion, which `train.provider.method: dpo` needs",
            "add sources with preference rows (prompt, chosen, rejected), or declare `method: supervised`",
        )
    return prepared


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
    status, id_ = "", job.id

    def look() -> tuple[FineTuningJob, list[JobEvent]]:
        return client.fine_tuning.jobs.retrieve(id_), log.fetch(client, id_)

    while True:
        job, new = patiently(look, f"look at job {id_}", where, seconds, report)
        for event in new:
            _report(event, mlflow_run, report)
        if job.status in ENDED:
            return job
        if job.status != status:
            status = job.status
            report.log(f"job {id_}: {status.replace('_', ' ')}")
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


if __name__ == "__main__":
    worker.main(run, ProviderSpec, computes=False)
