"""What a training would learn, without training: the token view and the audit of the current rows.

    preview = preview_of(task, store)
    preview.view["rows"]                 # as in tokens.json
    preview.audit.passed

It loads the tokenizer and no weights, so it takes seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_pipeline.config import Task
from finetune_pipeline.errors import DeclarationError, GateRefused
from finetune_pipeline.models.model_source import folder_of
from finetune_pipeline.store import TaskStore
from finetune_pipeline.train.audit import Audit
from finetune_pipeline.train.objective import objective_of, require_rows
from finetune_pipeline.train.outline import outline_of
from finetune_pipeline.train.token_view import TokenView, token_view


@dataclass(frozen=True)
class Preview:
    """`audit` is what the training checks before its first step."""

    view: TokenView
    audit: Audit


def preview_of(task: Task, store: TaskStore) -> Preview:
    """The view and the audit of the training rows of the current split. GateRefused before there is a split,
    ModelError or TrainingFailed as the training itself."""
    if task.train.provider is not None:
        raise DeclarationError(
            f"`train.provider` trains {task.name}: the provider renders and tokenizes the rows, and does not say how",
            "remove `train.provider` to see what a training on this machine would learn",
        )
    split, artifact = store.current("data_split"), store.current("base_model")
    if split is None or artifact is None:
        raise GateRefused(f"{task.name} has no training rows yet", f"make them with `finetune run {task.name}`")
    rows = {name: list(split.examples(f"{name}.jsonl")) for name in ("train", "validation")}
    require_rows(rows["train"], rows["validation"], objective_of(task.train))
    outline = outline_of(folder_of(artifact, task.base), rows, task.prompt.system, task.train)
    return Preview(token_view(outline.rows["train"], outline.base.tokenizer, outline.texts), outline.audit)
