"""The training process: load, audit, train (from the last checkpoint, if there is one), save; one MLflow run.

    python -m finetune_pipeline.train.job job.json

The description (all paths absolute): base, base_id, train, validation, system, rules (config.Train), checkpoints, out,
task, params, data {name, digest}. What is left in `out`: adapter_model.safetensors and adapter_config.json in peft's
format, audit.json, history.jsonl, training.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import worker
from finetune_pipeline.backends.peak_memory import PeakMemory
from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError, TrainingFailed
from finetune_pipeline.inference.attention_limits import longest_row
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.base_model import end_ids
from finetune_pipeline.models.device import name_of, uses_bf16
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.records import Example, Reporter, Silent, read_jsonl, write_jsonl
from finetune_pipeline.train import checkpoint, forward_check
from finetune_pipeline.train.adapter import with_adapter
from finetune_pipeline.train.audit import Audit, audit
from finetune_pipeline.train.loop import BETAS, Loop
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.replay import Replay, general_texts
from finetune_pipeline.train.tokenize import Encoded, encode


def run(spec: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """Train one adapter. TrainingFailed, ModelError, StorageError; JobCancelled after a checkpoint."""
    with PeakMemory() as peak:
        facts = _train(spec, report)
    training = facts | {"peak_mb": round(peak.mb)}
    (Path(spec["out"]) / "training.json").write_text(json.dumps(training, indent=1), "utf-8")
    return training


def _train(spec: dict[str, Any], report: Reporter) -> dict[str, Any]:
    rules = Train.model_validate(spec["rules"])
    made = assemble(spec, rules, report)
    folder = Path(spec["checkpoints"])
    folder.mkdir(parents=True, exist_ok=True)
    state = checkpoint.load(folder, made.weights, made.optimizer, report)
    resumed_at = state.step
    note_precision(state, name_of(uses_bf16(rules.precision)), report)
    return _tracked(spec, report, made, state) | {
        "resumed_at": resumed_at,
        "trainable_parameters": sum(weight.numel() for weight in made.weights.values()),
        "precision": ", then ".join(state.precisions),
        "shared_prefix_tokens": made.packed.prefix_tokens,
        "supervised_tokens": made.audit.supervised_tokens,
    }


def note_precision(state: checkpoint.State, precision: str, report: Reporter) -> None:
    """Keep in `state` what this machine computes in, and say so when the checkpoint came from another kind."""
    before = state.precisions[-1:]
    if before != [precision]:
        if before:
            report.log(f"the checkpoint was made in {before[0]}; this machine goes on in {precision}")
        state.precisions.append(precision)


@dataclass(frozen=True)
class Assembled:
    """All that a training loop works on. `wrapped`: peft's model; `packed`: the same one as the loop computes it;
    `weights`: its trainable tensors by name; `rows`: "train" and "validation"; `replay`: the general texts."""

    rules: Train
    wrapped: Any
    packed: PackedModel
    weights: dict[str, Any]
    optimizer: Any
    rows: dict[str, list[Encoded]]
    audit: Audit
    replay: Replay | None

    def loop(self, folder: Path, report: Reporter, tell: Callable[[dict[str, float], int], None]) -> Loop:
        """The loop, with its checkpoints in `folder` and its metrics told to `tell`."""
        packed, bf16 = self.packed, uses_bf16(self.rules.precision)
        return Loop(packed, self.weights, self.rules, packed.prefix_tokens, bf16, folder, report, tell, self.replay)


def assemble(spec: dict[str, Any], rules: Train, report: Reporter | None = None) -> Assembled:
    """Read model and rows, audit what will be learned (audit.json in `out`), put the adapter on, and check the packed
    loss. ModelError, TrainingFailed."""
    import torch

    torch.manual_seed(rules.seed)
    model, tokenizer, end_ids = load(Path(spec["base"]), rules)
    rows = {side: _encoded(spec[side], tokenizer, spec["system"], end_ids) for side in ("train", "validation")}
    if not rows["train"]:
        raise TrainingFailed("there is no row to train on", "read the accounting of data_split")
    prefix = common_prefix([row.prompt for part in ("train", "validation") for row in rows[part]])
    found = audit(rows["train"], end_ids, model.config.max_position_embeddings, len(prefix))
    _write_audit(found, Path(spec["out"]))
    wrapped = with_adapter(model, rules)
    forward_check.check(model, prefix, [*rows["train"], *rows["validation"]])
    packed = PackedModel(model, prefix)
    weights = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    optimizer = torch.optim.AdamW(
        list(weights.values()), lr=rules.learning_rate, betas=BETAS, weight_decay=rules.weight_decay
    )
    replay = replay_for(wrapped, packed, tokenizer, end_ids, rules, report or Silent())
    return Assembled(rules, wrapped, packed, weights, optimizer, rows, found, replay)


def _tracked(spec: dict[str, Any], report: Reporter, made: Assembled, state: checkpoint.State) -> dict[str, Any]:
    """Train inside the MLflow run of the checkpoint (or a new one), and keep what came out there as well."""
    from finetune_pipeline import tracking

    out, train = Path(spec["out"]), made.rows["train"]
    with tracking.training_run(spec["task"], state.run_id, spec["params"], {"data": spec["data"]["digest"]}) as run:
        if state.run_id is None:
            run.log_dataset(spec["data"]["name"], spec["data"]["digest"], len(train))
        state.run_id = run.run_id
        loop = made.loop(Path(spec["checkpoints"]), report, run.log_metrics)
        loop.run(train, made.rows["validation"], state, made.optimizer)
        save_adapter(made.wrapped, out, spec["base_id"])
        write_jsonl(out / "history.jsonl", state.history)
        run.log_artifacts(out, "adapter")
    return figures(state, train, made.rules)


def load(base: Path, rules: Train) -> tuple[Any, Any, frozenset[int]]:
    """Base model (weights in bf16 only where that is fast), tokenizer, and the tokens that end a turn."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if uses_bf16(rules.precision) else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True, use_safetensors=True)
    if not hasattr(getattr(model, "model", None), "layers") or not hasattr(model, "lm_head"):
        raise ModelError(
            f"{type(model).__name__} is not built like Llama (model.layers, lm_head)",
            "choose a base model of the Llama, Qwen, Mistral or SmolLM families",
        )
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device), tokenizer, end_ids(model, tokenizer)


def replay_for(
    wrapped: Any, packed: PackedModel, tokenizer: Any, end_ids: frozenset[int], rules: Train, report: Reporter
) -> Replay | None:
    """The general texts of the training, without those that the model cannot read as a whole; None where there are
    none, or `train.keep_general.weight` is 0."""
    if not rules.keep_general.weight:
        return None
    every, limit = encode(general_texts(), tokenizer, "", end_ids), longest_row(wrapped.config)
    texts = [text for text in every if len(text.ids) <= limit]
    if len(texts) < len(every):
        left = f"{len(every) - len(texts)} of {len(every)} general texts are left out"
        report.log(f"{left} of the training: longer than the {limit} tokens that the model can read")
    if not texts:
        return None
    return Replay(packed, texts, rules.keep_general, rules.seed, wrapped.disable_adapter, uses_bf16(rules.precision))


def save_adapter(wrapped: Any, out: Path, base_id: str) -> None:
    """In peft's own format. The base is named by its id: a folder of this machine would mean nothing elsewhere."""
    for config in wrapped.peft_config.values():
        config.base_model_name_or_path = base_id
        config.target_modules = sorted(config.target_modules)  # a set: its order, and the file's hash, would vary
        config.target_parameters = sorted(config.target_parameters or ()) or None
    with writing(out):
        wrapped.save_pretrained(str(out), safe_serialization=True, save_embedding_layers=False)
    (out / "README.md").unlink(missing_ok=True)  # peft's empty model card; ours is written on registration


def figures(state: checkpoint.State, rows: list[Encoded], rules: Train) -> dict[str, Any]:
    """What training.json says of the run. Tokens are counted as a plain trainer does: rows with their instruction."""
    losses = [line["loss"] for line in state.history if "loss" in line]
    validation = [line["validation_loss"] for line in state.history if "validation_loss" in line]
    general = [line["general_divergence"] for line in state.history if "general_divergence" in line][-20:]
    per_row = sum(len(row.ids) for row in rows) / max(1, len(rows))
    tokens = per_row * min(len(rows), rules.batch_size) * state.step
    return {
        "mlflow_run_id": state.run_id,
        "steps": state.step,
        "seconds": round(state.seconds, 1),
        "tokens_per_second": round(tokens / max(state.seconds, 1e-9), 1),
        "rows": len(rows),
        "loss_first": losses[0],
        "loss_last": sum(losses[-5:]) / len(losses[-5:]),
        "validation_loss_start": validation[0],
        "validation_loss": validation[-1],
        "general_divergence": sum(general) / len(general) if general else None,
    }


def _encoded(path: str, tokenizer: Any, system: str, end_ids: frozenset[int]) -> list[Encoded]:
    return encode((Example.from_json(row) for row in read_jsonl(Path(path))), tokenizer, system, end_ids)


def _write_audit(found: Audit, out: Path) -> None:
    """audit.json; TrainingFailed before any step when what would be learned is not what is meant."""
    (out / "audit.json").write_text(json.dumps(found.to_json(), indent=1), "utf-8")
    broken = [f"{check.name}: {check.observed}" for check in found.checks if not check.passed]
    if broken:
        raise TrainingFailed(
            "the audit before training failed: " + "; ".join(broken),
            "fix or drop these rows, or choose a base model whose chat template ends every turn",
        )


if __name__ == "__main__":
    worker.main(run)
