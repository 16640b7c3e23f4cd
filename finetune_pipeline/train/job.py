"""The training process: load, audit, train (from the last checkpoint, if there is one), save; one MLflow run.

    python -m finetune_pipeline.train.job job.json        # a TrainingSpec (spec.py)

It writes to `out`: adapter_model.safetensors and adapter_config.json in peft's format, audit.json (audit.Audit),
history.jsonl (one checkpoint.HistoryLine per step), and training.json (spec.TrainingResult).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import worker
from finetune_pipeline.backends.peak_memory import PeakMemory
from finetune_pipeline.config import Train
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.inference.chat_template import end_ids
from finetune_pipeline.inference.loading import base_errors
from finetune_pipeline.inference.model_family import decoder_parts, max_sequence_tokens, within_limit
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.device import kind, name_of, uses_bf16
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.records import SILENT, Example, Reporter, read_jsonl, write_jsonl
from finetune_pipeline.train import checkpoint, forward_check
from finetune_pipeline.train.adapter import with_adapter
from finetune_pipeline.train.audit import Audit, audit
from finetune_pipeline.train.loop import BETAS, Loop
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.replay import Replay, general_texts
from finetune_pipeline.train.spec import TrainingResult, TrainingSpec
from finetune_pipeline.train.tokenize import TokenizedExample, tokenize


def run(spec: TrainingSpec, report: Reporter) -> TrainingResult:
    """Train one adapter. TrainingFailed, ModelError, StorageError; JobCanceled after a checkpoint."""
    with PeakMemory() as peak:
        result = _train(spec, report)
    result = replace(result, peak_mb=round(peak.mb))
    (spec.out / "training.json").write_text(json.dumps(result.to_json(), indent=1), "utf-8")
    return result


def _train(spec: TrainingSpec, report: Reporter) -> TrainingResult:
    setup = assemble(spec, report)
    spec.checkpoints.mkdir(parents=True, exist_ok=True)
    state = checkpoint.load(spec.checkpoints, setup.weights, setup.optimizer, report)
    resumed_at = state.step
    note_precision(state, name_of(uses_bf16(spec.rules.precision)), report)
    _train_in_mlflow_run(spec, report, setup, state)
    return _result(setup, state, resumed_at)


def note_precision(state: checkpoint.TrainingState, precision: str, report: Reporter) -> None:
    """Add the precision of this machine to `state`, and log it when the checkpoint has another one."""
    before = state.precisions[-1:]
    if before != [precision]:
        if before:
            report.log(f"the checkpoint was computed in {before[0]}; this machine continues in {precision}")
        state.precisions.append(precision)


@dataclass(frozen=True)
class TrainingSetup:
    """Everything a training loop needs. `wrapped`: peft's model; `packed`: the same model, as the loop computes it;
    `weights`: its trainable tensors by name; `rows`: those of "train" and "validation"; `replay`: the general texts."""

    rules: Train
    wrapped: Any
    packed: PackedModel
    weights: dict[str, Any]
    optimizer: Any
    rows: dict[str, list[TokenizedExample]]
    audit: Audit
    replay: Replay | None

    def loop(self, folder: Path, report: Reporter, log_metrics: Callable[[dict[str, float], int], None]) -> Loop:
        """The loop, with checkpoints in `folder`; `log_metrics` gets the metrics and the step."""
        bf16 = uses_bf16(self.rules.precision)
        return Loop(self.packed, self.weights, self.rules, bf16, folder, report, log_metrics, self.replay)


def assemble(spec: TrainingSpec, report: Reporter = SILENT) -> TrainingSetup:
    """Load model and rows, audit them (audit.json in `out`), add the adapter, and check the packed loss.

    ModelError when the model cannot be trained; TrainingFailed when there are no rows, or the audit fails.
    """
    import torch

    rules = spec.rules
    torch.manual_seed(rules.seed)
    model, tokenizer, ends = load(spec.base, rules)
    rows = {
        "train": _read_rows(spec.train, tokenizer, spec.system, ends),
        "validation": _read_rows(spec.validation, tokenizer, spec.system, ends),
    }
    if not rows["train"]:
        raise TrainingFailed("there are no rows to train on", "read the accounting of data_split")
    prefix = common_prefix([row.prompt for split in rows.values() for row in split])
    audited = audit(rows["train"], ends, max_sequence_tokens(model.config), len(prefix))
    _require_passed(audited, spec.out)
    wrapped = with_adapter(model, rules)
    forward_check.check(model, prefix, [*rows["train"], *rows["validation"]])
    packed = PackedModel(model, prefix)
    weights = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(
        list(weights.values()), lr=rules.learning_rate, betas=BETAS, weight_decay=rules.weight_decay
    )
    replay = replay_for(wrapped, packed, tokenizer, ends, rules, report)
    return TrainingSetup(rules, wrapped, packed, weights, optimizer, rows, audited, replay)


def _train_in_mlflow_run(
    spec: TrainingSpec, report: Reporter, setup: TrainingSetup, state: checkpoint.TrainingState
) -> None:
    """Train inside the MLflow run of the checkpoint, or a new run, and log the adapter's files there, too."""
    from finetune_pipeline import tracking

    train = setup.rows["train"]
    with tracking.training_run(spec.task, state.run_id, spec.params, {"data": spec.dataset_digest}) as run:
        if state.run_id is None:
            run.log_dataset(spec.dataset_name, spec.dataset_digest, len(train))
        state.run_id, state.experiment_id = run.run_id, run.experiment_id
        loop = setup.loop(spec.checkpoints, report, run.log_metrics)
        loop.run(train, setup.rows["validation"], state, setup.optimizer)
        save_adapter(setup.wrapped, spec.out, spec.base_id)
        write_jsonl(spec.out / "history.jsonl", state.history)
        run.log_artifacts(spec.out, "adapter")


def load(base: Path, rules: Train) -> tuple[Any, Any, frozenset[int]]:
    """Base model (weights in bf16 only where that is fast), tokenizer, and the ids of the end-of-turn tokens.

    ModelError when they cannot be loaded, or the layout of the model's modules is unknown."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if uses_bf16(rules.precision) else torch.float32
    with base_errors(base):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    decoder_parts(model)
    return model.to(kind()), tokenizer, end_ids(model, tokenizer)


def replay_for(
    wrapped: Any, packed: PackedModel, tokenizer: Any, end_ids: frozenset[int], rules: Train, report: Reporter
) -> Replay | None:
    """The replay of general texts, without those that are longer than the model's limit; None when none is left, or
    `train.keep_general.weight` is 0."""
    if not rules.keep_general.weight:
        return None
    texts = tokenize(general_texts(), tokenizer, "", end_ids)
    texts = within_limit(texts, lambda text: len(text.ids), wrapped.config, "general texts", report)
    if not texts:
        return None
    return Replay(packed, texts, rules.keep_general, rules.seed, wrapped.disable_adapter, uses_bf16(rules.precision))


def save_adapter(wrapped: Any, out: Path, base_id: str) -> None:
    """Save in peft's format. The base is named by its id, because a local path is meaningless on another machine."""
    for config in wrapped.peft_config.values():
        config.base_model_name_or_path = base_id
        config.target_modules = sorted(config.target_modules)  # a set: its order, and the file's hash, would vary
        config.target_parameters = sorted(config.target_parameters or ()) or None
    with writing(out):
        wrapped.save_pretrained(str(out), safe_serialization=True, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # peft's empty model card; registration writes one


def _result(setup: TrainingSetup, state: checkpoint.TrainingState, resumed_at: int) -> TrainingResult:
    rows, batch_size = setup.rows["train"], setup.rules.batch_size
    losses = [line["loss"] for line in state.history if "loss" in line]
    validation = [line["validation_loss"] for line in state.history if "validation_loss" in line]
    divergences = [line["general_divergence"] for line in state.history if "general_divergence" in line][-20:]
    tokens_per_row = sum(len(row.ids) for row in rows) / max(1, len(rows))
    tokens = tokens_per_row * min(len(rows), batch_size) * state.step
    return TrainingResult(
        mlflow_run_id=state.run_id,
        mlflow_experiment_id=state.experiment_id,
        steps=state.step,
        seconds=round(state.seconds, 1),
        tokens_per_second=round(tokens / max(state.seconds, 1e-9), 1),
        rows=len(rows),
        loss_first=losses[0],
        loss_last=sum(losses[-5:]) / len(losses[-5:]),
        validation_loss_start=validation[0],
        validation_loss=validation[-1],
        general_divergence=sum(divergences) / len(divergences) if divergences else None,
        resumed_at=resumed_at,
        trainable_parameters=sum(weight.numel() for weight in setup.weights.values()),
        precision=", then ".join(state.precisions),
        shared_prefix_tokens=setup.packed.prefix_tokens,
        supervised_tokens=setup.audit.supervised_tokens,
    )


def _read_rows(path: Path, tokenizer: Any, system: str, end_ids: frozenset[int]) -> list[TokenizedExample]:
    return tokenize((Example.from_json(row) for row in read_jsonl(path)), tokenizer, system, end_ids)


def _require_passed(audited: Audit, out: Path) -> None:
    """Write audit.json; TrainingFailed when a check failed."""
    (out / "audit.json").write_text(json.dumps(audited.to_json(), indent=1), "utf-8")
    failed = [f"{check.name}: {check.observed}" for check in audited.checks if not check.passed]
    if failed:
        raise TrainingFailed(
            "the audit before training failed: " + "; ".join(failed),
            "fix or drop these rows, or choose a base model whose chat template ends every turn",
        )


if __name__ == "__main__":
    worker.main(run, TrainingSpec)
