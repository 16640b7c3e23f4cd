"""MODEL_CARD.md in the Hugging Face format: a YAML head for their tools, then the text for people.

    ---
    base_model: HuggingFaceTB/SmolLM2-135M-Instruct
    license: apache-2.0
    ...
    # support_tickets, version 4

"Model Cards for Model Reporting" (Mitchell et al., FAT* 2019) lists the sections; the fields of the head are those
of huggingface_hub's ModelCardData. Every number is copied from an artifact: nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from finetune_pipeline.baseline.variants import TUNED
from finetune_pipeline.config import Task
from finetune_pipeline.evaluate.memorization import MemorizationFigures
from finetune_pipeline.models.model_source import ModelFacts
from finetune_pipeline.models.trained_weights import Method
from finetune_pipeline.providers.record import ProviderRecord
from finetune_pipeline.records import Decision
from finetune_pipeline.release.figures import figures_of, general_of
from finetune_pipeline.release.formatting import bullets
from finetune_pipeline.release.report import checks_table, opponents, power_and_reuse
from finetune_pipeline.split.accounting import Account
from finetune_pipeline.statistics.formatting import percent

LANGUAGE = "und"  # ISO 639 "undetermined": the declaration names no language, and a guess would read as a fact
USES = {
    "research": "Research only; the license of the base model was checked for no other use.",
    "internal": "Inside the organization that trained it; the license of the base model was checked for internal use.",
    "commercial": "Commercial use; the license of the base model was checked for it.",
}
TrainedBy: TypeAlias = Method | Literal["managed"]
LIBRARIES: dict[TrainedBy, str] = {"lora": "peft", "qlora": "peft", "full": "transformers", "managed": "openai"}
TAGS: dict[TrainedBy, list[str]] = {
    "lora": ["lora"],
    "qlora": ["lora", "qlora", "4-bit"],
    "full": [],
    "managed": ["managed"],
}
DATA_LICENSES = "The licenses of the data are listed below and were not checked."


@dataclass(frozen=True, slots=True)
class Registration:
    """The values of the card. `checksums`: file name -> SHA-256; `lineage`: artifact -> content hash or id;
    `memorization`: the evaluation's figures, where it was measured; `at`: time of the registration (UTC, ISO 8601);
    `training`: training.json; `method`: how it was trained, "managed" by the `provider` that serves it, too."""

    task: Task
    version: int
    decision: Decision
    base: ModelFacts
    accounting: Account
    training: Mapping[str, Any]
    method: TrainedBy
    memorization: MemorizationFigures | None
    checksums: Mapping[str, str]
    lineage: Mapping[str, str]
    at: str
    provider: ProviderRecord | None = None


def card(model: Registration) -> str:
    """The whole card."""
    task, figures = model.task, figures_of(model.decision)
    parts = (
        f"---\n{_head(model)}\n---",
        f"# {task.name}, version {model.version}\n\n{task.description}",
        f"## Intended use\n\n{_use(task)}",
        f"## Data\n\n{_data(model)}",
        f"## Results\n\n{opponents(figures)}\n\n{power_and_reuse(figures)}",
        f"## Why it was promoted\n\n{model.decision.summary}\n\n{checks_table(model.decision.checks)}",
        f"## Limits\n\n{_limits(model)}",
        f"## Training\n\n{bullets(_plain(model.training))}",
        f"## Lineage\n\n{bullets(model.lineage)}",
        f"## Checksums (SHA-256)\n\n{bullets({f'`{name}`': f'`{sha}`' for name, sha in model.checksums.items()})}",
    )
    return "\n\n".join(parts) + "\n"


def _head(model: Registration) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task, figures = model.task, figures_of(model.decision)
    tuned = figures["variants"][TUNED]
    exact = tuned["exact"] / tuned["rows"]
    result = EvalResult(
        task_type="text-generation",
        dataset_type=task.name,
        dataset_name=f"{task.name} (held-out test rows)",
        metric_type="exact_match",
        metric_name="Exact match",
        metric_value=round(exact, 4),
    )
    managed = model.provider
    head = ModelCardData(
        base_model=managed.provider.model if managed else model.base["id"],
        license="other" if managed else task.base.license,
        language=LANGUAGE,
        library_name=LIBRARIES[model.method],
        pipeline_tag="text-generation",
        tags=[*TAGS[model.method], "finetune-pipeline", task.name],
        metrics=["exact_match"],
        model_name=task.name,
        eval_results=[result],
    )
    text: str = head.to_yaml()
    return text.strip()


def _use(task: Task) -> str:
    formats = {"json": "one JSON object of the declared schema", "label": "one of the declared labels", "text": "text"}
    approval = f" Approval of that license: {task.base.license_approval}." if task.base.license_approval else ""
    return (
        f"{USES[task.use]}{approval} {DATA_LICENSES} It answers one kind of message with "
        f"{formats[task.answer.format]}, with the prompt it was trained with. Other uses were not measured and are not "
        "intended: open conversation, advice to people, decisions about people without human review."
    )


def _data(model: Registration) -> str:
    account = model.accounting
    lines = [f"{account.raw} raw rows, every one accounted for:\n", "| use | rows |", "|---|---|"]
    lines += [f"| {split} | {count} |" for split, count in account.splits.items()]
    for stage, reasons in account.dropped.items():
        lines += [f"| dropped by {stage}: {reason} | {count} |" for reason, count in reasons.items()]
    licenses = {source.label: source.license or "not declared" for source in model.task.sources}
    return "\n".join(lines) + "\n\nLicenses of the sources:\n\n" + bullets(licenses)


def _limits(model: Registration) -> str:
    figures = figures_of(model.decision)
    general = general_of(figures)
    warnings = [f"{check.name}: {check.observed}" for check in model.decision.checks if not check.passed]
    lines = [
        f"Measured on {figures['rows']} test rows of the same sources as the training rows; other data may differ.",
        f"Loss on general text changed by {percent(general['rise'])} on {general['texts']} texts."
        if general["measured"]
        else "General ability was not measured.",
        *warnings,
    ]
    if model.provider:
        lines += [
            f"The model is {model.provider.model} at {model.provider.base_url}: its weights are not here, and prompts "
            "are sent there. The provider's terms apply, and not the license of the local base model.",
            "The provider may change or withdraw it; answers to the same prompt may differ now and then.",
        ]
    if search := model.training.get("search"):
        lines.append(
            f"Its settings are those of the best of {search['trials']} trainings, compared by {search['metric']} on "
            "validation rows; the test rows were not read for that."
        )
    if model.memorization:
        lines.append(f"Memorization of training rows: {_flat(model.memorization)}.")
    return "\n".join(f"- {line}" for line in lines)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _plain(values).items())
