"""Checkpoints of a training: adapter, optimizer state and history, as safetensors and JSON, written atomically.

    checkpoints/step-00000040/tensors.safetensors, state.json     # state.json holds the hash of the tensors

Nothing else is needed to resume exactly: order, batches, learning rate and dropout depend on seed and step alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from finetune_pipeline.models.model_files import writing
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import sha256_file

KEPT = 2


class HistoryLine(TypedDict, total=False):
    """history.jsonl: the metrics of an optimizer step. Step 0 has the validation loss before training only; the last
    step of an epoch has one, too. Losses and `general_divergence` in nats per token."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens_per_second: float
    general_divergence: float
    validation_loss: float


@dataclass
class TrainingState:
    """The progress of a training: completed steps, ids of the MLflow run and its experiment, history, seconds spent,
    and the precisions used: more than one when `precision: auto` was resumed on another type of machine."""

    step: int = 0
    run_id: str | None = None
    experiment_id: str | None = None  # of MLflow, as the run
    history: list[HistoryLine] = field(default_factory=list)
    seconds: float = 0.0
    precisions: list[str] = field(default_factory=list)


def save(folder: Path, state: TrainingState, weights: Mapping[str, Any], optimizer: Any) -> None:
    """Write a checkpoint, and delete all but the newest two. StorageError when there is no space. `weights`: the
    trainable tensors by name."""
    from safetensors.torch import save_file

    target = folder / f"step-{state.step:08d}"
    scratch = folder / f".{target.name}.{os.getpid()}"
    try:
        with writing(target):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            tensors = {name: weight.detach().contiguous() for name, weight in weights.items()}
            for name, weight in weights.items():  # none before the first step, or without a gradient
                tensors |= {f"{key}/{name}": value for key, value in optimizer.state.get(weight, {}).items()}
            save_file(tensors, scratch / "tensors.safetensors")
            plain = asdict(state) | {"sha256": sha256_file(scratch / "tensors.safetensors")}
            (scratch / "state.json").write_text(json.dumps(plain), "utf-8")
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def load(folder: Path, weights: Mapping[str, Any], optimizer: Any, report: Reporter) -> TrainingState:
    """Restore the newest intact checkpoint and return its state; a new state if there is none. Damaged checkpoints are
    logged and deleted."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            state, tensors = _read(candidate, weights)
        except (OSError, ValueError, LookupError, TypeError) as error:
            report.log(f"the checkpoint {candidate.name} is damaged ({error}); using the previous one")
            shutil.rmtree(candidate)
            continue
        _restore(tensors, weights, optimizer)
        report.log(f"resuming from the checkpoint at step {state.step}")
        return state
    return TrainingState()


def _read(folder: Path, weights: Mapping[str, Any]) -> tuple[TrainingState, dict[str, Any]]:
    """State and tensors of a checkpoint, checked completely. ValueError or KeyError when they do not fit."""
    from safetensors.torch import load_file

    plain = json.loads((folder / "state.json").read_text("utf-8"))
    if plain.pop("sha256") != sha256_file(folder / "tensors.safetensors"):
        raise ValueError("its tensors have another hash than when they were written")
    state, tensors = TrainingState(**plain), load_file(folder / "tensors.safetensors")
    for name, weight in weights.items():
        if tensors[name].shape != weight.shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(weight.shape)}")
    if state.step and not any(f"step/{name}" in tensors for name in weights):
        raise ValueError("it has no optimizer state")
    return state, tensors


def _restore(tensors: Mapping[str, Any], weights: Mapping[str, Any], optimizer: Any) -> None:
    import torch

    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
            if f"step/{name}" in tensors:
                moments = {key: tensors[f"{key}/{name}"].to(weight.device) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {"step": tensors[f"step/{name}"], **moments}
