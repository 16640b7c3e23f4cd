"""What is known of a training without its weights: the rows as token ids, the audit, the sizes of the model.

    outline = outline_of(folder, {"train": rows, "validation": more}, "Say the color.", rules)
    outline.audit.passed
    outline.architecture.parameters

The model is built by transformers on torch's meta device, where weights take no memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.config import Train
from finetune_pipeline.inference.base_weights import base_errors, read_small_files
from finetune_pipeline.inference.chat_template import end_ids_of
from finetune_pipeline.inference.model_family import max_sequence_tokens
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.records import Example
from finetune_pipeline.train.assembly import tokenized
from finetune_pipeline.train.audit import Audit, audit
from finetune_pipeline.train.method import Base
from finetune_pipeline.train.objective import objective_of
from finetune_pipeline.train.replay import general_rows
from finetune_pipeline.train.tokenize import TokenizedExample


@dataclass(frozen=True)
class Outline:
    """`base`: its model is on the meta device; `rows`: by split, those that the objective takes; `texts`: the general
    texts of `train.keep_general`; `prefix`: token ids that all rows begin with; `audit`: of the training rows."""

    base: Base
    architecture: Architecture
    rows: dict[str, list[TokenizedExample]]
    texts: list[TokenizedExample]
    prefix: list[int]
    audit: Audit


def outline_of(folder: Path, examples: Mapping[str, list[Example]], system: str, rules: Train) -> Outline:
    """`folder`: of the base model; `examples`: by split, "train" among them. ModelError as loading the model raises it,
    as far as it can be known from its small files."""
    import torch
    from transformers import AutoModelForCausalLM

    with base_errors(folder):
        config, tokenizer = read_small_files(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    base = Base(model, tokenizer, end_ids_of(folder, tokenizer), config.dtype or torch.float32)
    objective = objective_of(rules)
    rows = {name: tokenized(found, base, system, rules, objective) for name, found in examples.items()}
    prefix = common_prefix([row.prompt for split in rows.values() for row in split])
    validation = rows.get("validation", [])
    audited = audit(rows["train"], base.end_ids, max_sequence_tokens(config), len(prefix), validation)
    return Outline(base, Architecture.of_model(model), rows, general_rows(base, rules), prefix, audited)
