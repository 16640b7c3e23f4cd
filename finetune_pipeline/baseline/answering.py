"""What a job that answers the test rows has to do, as a value that travels to the job's process as JSON.

request = answer_request(context, partial, ["zero_shot", "classical"])
run_job("finetune_pipeline.baseline.job", request, request, context.report)      # AnswerCounts(answers=446, …)

{"base": "…/models/SmolLM2…", "adapter": null, "split": "…/data_split/3fa9…", "partial": "…/answers/91c4…",
 "task": {…}, "variants": ["zero_shot", "classical"], "max_new_tokens": 48}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.backends import launch
from finetune_pipeline.backends.deployment import backend_for, one_process
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Backend, Precision, Task
from finetune_pipeline.models import model_files, model_source
from finetune_pipeline.providers.record import ProviderModel, is_managed, read_record
from finetune_pipeline.records import Artifact, Example, Reporter, read_jsonl
from finetune_pipeline.store import StageContext

LENGTH_FACTOR = 1.2  # an answer may be this much longer than the longest completion of the training rows
PROVIDER_LENGTH_FACTOR = 2.0  # the same where a provider answers, whose tokenizer is another one
ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class AnswerRequest(JobData):
    """`base` and `adapter` (what was trained) are the folders of the model, `split` that of the rows, `partial` that of
    the answers so far, all absolute: the job may run on another machine; `max_new_tokens` is the longest answer;
    `precision` that of `serve.precision`; `provider` answers instead of `base` and `adapter` where it is set."""

    base: Path
    adapter: Path | None
    split: Path
    partial: Path
    task: Task
    variants: tuple[str, ...]
    max_new_tokens: int
    precision: Precision = "auto"
    provider: ProviderModel | None = None

    def rows(self, split: str) -> list[Example]:
        """The rows of "train" or "test"."""
        return [Example.from_json(row) for row in read_jsonl(self.split / f"{split}.jsonl")]


@dataclass(frozen=True)
class AnswerCounts(JobData):
    """The job's result: answers that it made, and `reused` ones of an earlier run that was interrupted; `precision`:
    what the model computed in, "bf16" or "fp32"; None where a provider computed."""

    answers: int
    reused: int
    precision: str | None


def answer_request(
    context: StageContext, partial: Path, variants: Sequence[str], adapter: Artifact | None = None
) -> AnswerRequest:
    """Answer the current test rows with the declared base model and `adapter`.

    With a managed provider, through its API: prompts by the provider's model that is tuned, because that is what the
    team would prompt instead."""
    folder = model_source.folder_of(context.inputs["base_model"], context.task.base, context.report)
    return AnswerRequest(
        base=folder.absolute(),
        adapter=adapter.folder.absolute() if adapter and not is_managed(adapter.folder) else None,
        split=context.inputs["data_split"].folder.absolute(),
        partial=partial.absolute(),
        task=context.task,
        variants=tuple(variants),
        max_new_tokens=max_new_tokens(context, folder),
        precision=context.task.serve.precision,
        provider=provider_model(context.task, adapter),
    )


def run_job(module: str, spec: JobData, answers: AnswerRequest, report: Reporter) -> AnswerCounts:
    """Run a job that makes `answers`, described by `spec`: in one process of the backend that trains, or, where a
    provider answers, on this machine, whose environment has the key. DeclarationError for a backend that cannot be
    used; else as backends/launch.py raises."""
    managed = answers.provider is not None
    backend = Backend() if managed else one_process(backend_for(answers.task.train.backend))
    return launch.run(module, spec, AnswerCounts, answers.partial, report, backend)


def provider_model(task: Task, adapter: Artifact | None) -> ProviderModel | None:
    """The provider's model that answers: the tuned one of `adapter`, else the declared one; None on this machine."""
    provider = task.train.provider
    if adapter is None:
        return ProviderModel(provider, provider.model) if provider else None
    record = read_record(adapter.folder)
    return record.answering(provider) if record else None


def max_new_tokens(context: StageContext, folder: Path) -> int:
    """The declared limit, else the tokens of the longest training completion and 20 %. Test rows are not read."""
    if context.task.evaluate.max_new_tokens:
        return context.task.evaluate.max_new_tokens
    texts = [row.completion for row in context.inputs["data_split"].examples("train.jsonl")]
    longest = max(model_files.token_counter(folder)(texts), default=1)
    factor = PROVIDER_LENGTH_FACTOR if context.task.train.provider else LENGTH_FACTOR
    return max(int(longest * factor), longest + 2)  # room for the end-of-turn token
