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
from finetune_pipeline.inference.base_weights import base_errors, require_known
from finetune_pipeline.inference.chat_template import end_ids_of
from finetune_pipeline.inference.model_family import max_sequence_tokens
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.model_files import check_safe
from finetune_pipeline.models.model_source import folder_of
from finetune_pipeline.store import TaskStore
from finetune_pipeline.train.assembly import general_rows, tokenized
from finetune_pipeline.train.audit import Audit, audit
from finetune_pipeline.train.method import Base
from finetune_pipeline.train.objective import objective_of
from finetune_pipeline.train.token_view import TokenView, token_view


@dataclass(frozen=True)
class Preview:
    """`audit` is what the training checks before its first step."""

    view: TokenView
    audit: Audit


def preview_of(task: Task, store: TaskStore) -> Preview:
    """The view and the audit of the training rows of the current split. GateRefused before there is a split,
    ModelError or TrainingFailed as the training itself."""
    from transformers import AutoConfig, AutoTokenizer

    if task.train.provider is not None:
        raise DeclarationError(
            f"`train.provider` trains {task.name}: the provider renders and tokenizes the rows, and does not say how",
            "remove `train.provider` to see what a training on this machine would learn",
        )
    split, artifact = store.current("data_split"), store.current("base_model")
    if split is None or artifact is None:
        raise GateRefused(f"{task.name} has no training rows yet", f"make them with `finetune run {task.name}`")
    folder = folder_of(artifact, task.base)
    with base_errors(folder):
        check_safe(folder)
        require_known(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    base = Base(None, tokenizer, end_ids_of(folder, tokenizer), None)
    examples = list(split.examples("train.jsonl"))
    rows = tokenized(examples, base, task.prompt.system, task.train, objective_of(task.train))
    prefix = common_prefix([row.prompt for row in rows])
    audited = audit(rows, base.end_ids, max_sequence_tokens(config), len(prefix))
    return Preview(token_view(rows, tokenizer, general_rows(base, task.train)), audited)
