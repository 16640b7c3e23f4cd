"""MODEL_CARD.md in the Hugging Face form: a YAML head that their tools read, then what a person has to know. Pure.

    ---
    base_model: HuggingFaceTB/SmolLM2-135M-Instruct
    license: apache-2.0
    ...
    # support_tickets, version 4

"Model Cards for Model Reporting" (Mitchell et al., FAT* 2019) says what belongs in it; the fields of the head are those
of huggingface_hub's ModelCardData. Every number is copied from an artifact: nothing is measured here.

What it is not: the decision's own page (report.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.config import Task
from finetune_pipeline.records import Decision
from finetune_pipeline.release.report import checks_table, opponents, shown
from finetune_pipeline.statistics.formatting import percent

LANGUAGE = "und"  # ISO 639 "undetermined": the declaration names no language, and a guess would be taken for a fact
USES = {
    "research": "Research only: the declared use is research, and licenses were checked for that alone.",
    "internal": "Inside the organization that trained it; licenses were checked for internal use.",
    "commercial": "Commercial use; the licenses of base model and data were checked for it.",
}


@dataclass(frozen=True, slots=True)
class Registration:
    """What the card tells of. `base`: base_model.json; `accounting`: the split's accounting.json; `training`: the
    adapter's training.json; `checksums`: file name -> SHA-256; `lineage`: what -> content hash or id; `memorization`:
    the evaluation's figures on it, if it was measured; `at`: time of the registration (UTC, ISO 8601)."""

    task: Task
    version: int
    decision: Decision
    base: Mapping[str, Any]
    accounting: Mapping[str, Any]
    training: Mapping[str, Any]
    memorization: Mapping[str, Any] | None
    checksums: Mapping[str, str]
    lineage: Mapping[str, str]
    at: str


def card(model: Registration) -> str:
    """The whole card."""
    task, figures = model.task, model.decision.figures
    parts = (
        f"---\n{_head(model)}\n---",
        f"# {task.name}, version {model.version}\n\n{task.description}",
        f"## Intended use\n\n{_use(task)}",
        f"## Data\n\n{_data(model)}",
        f"## Results\n\n{opponents(figures)}\n\n{shown(figures)}",
        f"## Why it was promoted\n\n{model.decision.summary}\n\n{checks_table(model.decision.checks)}",
        f"## Limits\n\n{_limits(model)}",
        f"## Training\n\n{_list(_plain(model.training))}",
        f"## Lineage\n\n{_list(model.lineage)}",
        f"## Checksums (SHA-256)\n\n{_list({f'`{name}`': f'`{sha}`' for name, sha in model.checksums.items()})}",
    )
    return "\n\n".join(parts) + "\n"


def _head(model: Registration) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    task, figures = model.task, model.decision.figures
    tuned: Any = figures["variants"]
    exact = tuned["tuned"]["exact"] / tuned["tuned"]["rows"]
    result = EvalResult(
        task_type="text-generation",
        dataset_type=task.name,
        dataset_name=f"{task.name} (held-out test rows)",
        metric_type="exact_match",
        metric_name="Exact match",
        metric_value=round(exact, 4),
    )
    head = ModelCardData(
        base_model=str(model.base["id"]),
        license=task.base.license,
        language=LANGUAGE,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "finetune-pipeline", task.name],
        metrics=["exact_match"],
        model_name=task.name,
        eval_results=[result],
    )
    text: str = head.to_yaml()
    return text.strip()


def _use(task: Task) -> str:
    formats = {"json": "one JSON object of the declared schema", "label": "one of the declared labels", "text": "text"}
    return (
        f"{USES[task.use]} It answers one kind of message with {formats[task.answer.format]}, under the prompt "
        "it was trained with. Nothing else was measured, so nothing else is intended: no open conversation, no advice "
        "to people, no decisions about them without a person."
    )


def _data(model: Registration) -> str:
    splits: Mapping[str, int] = model.accounting["splits"]
    lines = [f"{model.accounting['raw']} raw rows, every one accounted for:\n", "| fate | rows |", "|---|---|"]
    lines += [f"| {split} | {count} |" for split, count in splits.items()]
    for stage, reasons in model.accounting["dropped"].items():
        lines += [f"| dropped by {stage}: {reason} | {count} |" for reason, count in reasons.items()]
    licenses = {source.label: source.license or "not declared" for source in model.task.sources}
    return "\n".join(lines) + "\n\nLicenses of the sources:\n\n" + _list(licenses)


def _limits(model: Registration) -> str:
    findings: Any = model.decision.figures["findings"]
    warned = [f"{c.name}: {c.observed}" for c in model.decision.checks if not c.passed]
    general = findings["general"]
    lines = [
        f"Measured on {model.decision.figures['rows']} test rows of the training's own sources; other data may differ.",
        f"Loss on general text changed by {percent(general['rise'])} on {general['texts']} texts."
        if general["measured"]
        else "What else the model forgot was not measured.",
        *warned,
    ]
    if model.memorization:
        lines.append(f"Memorization of training rows: {_flat(model.memorization)}.")
    return "\n".join(f"- {line}" for line in lines)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if isinstance(value, str | int | float)}


def _flat(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in _plain(values).items())


def _list(values: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in values.items())
