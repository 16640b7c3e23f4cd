"""Checkpoints of a training: adapter, optimizer state and history, as safetensors and JSON, written atomically.

    checkpoints/step-00000040/tensors.safetensors, state.json     # state.json holds the hash of the tensors
    checkpoints/best-00000025.safetensors                         # and that of the best weights (best_weights.py)

Nothing else is needed to resume exactly: order, batches, learning rate and dropout depend on seed and step alone. What
the training was made from (`identity`) is in the state, so that a checkpoint of another declaration is not resumed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from finetune_pipeline.errors import StorageError, TrainingFailed
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import sha256_file
from finetune_pipeline.train import best_weights
from finetune_pipeline.train.best_weights import write_tensors
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.sharding import gather, part_of, restore

KEPT = 2
SHARED = ("qmap1", "qmap2")


class HistoryLine(TypedDict, total=False):
    """history.jsonl: the metrics of an optimizer step. Step 0 has the validation before training only; others have one
    where it was due. Losses and divergences in nats; `skipped` is 1 for a step that was not applied; the reward of a
    completion is how much more likely it is than before training; `validation_score`: share of right answers;
    `peak_share`: of the device's peak for matrix products, 0 to 1."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens_per_second: float
    peak_share: float
    general_divergence: float
    kto_divergence: float
    reward_accuracy: float
    reward_margin: float
    skipped: int
    validation_loss: float
    validation_reward_accuracy: float
    validation_score: float


@dataclass
class TrainingState:
    """The progress of a training: completed steps, ids of the MLflow run and its experiment, history, seconds spent,
    and the precisions used: more than one when `precision: auto` was resumed on another type of machine.

    `max_tokens`: of a forward pass, lower than declared after memory ran out; `skipped`: steps that were not applied;
    `best_step` and `best_loss`: of the lowest validation loss, `best_sha256`: of its weights, where they are kept;
    `without_gain`: validations since; `stopped`: early.
    `identity`: settings, base model and data of the training, by name (spec.TrainingSpec.identity)."""

    step: int = 0
    run_id: str | None = None
    experiment_id: str | None = None  # of MLflow, as the run
    history: list[HistoryLine] = field(default_factory=list)
    seconds: float = 0.0
    precisions: list[str] = field(default_factory=list)
    max_tokens: int = 0
    skipped: int = 0
    best_step: int = 0
    best_loss: float | None = None
    best_sha256: str = ""
    without_gain: int = 0
    stopped: bool = False
    identity: dict[str, Any] = field(default_factory=dict)


def save(folder: Path, state: TrainingState, weights: Mapping[str, Any], optimizer: Any, ranks: Ranks = ALONE) -> None:
    """Write a checkpoint, and delete all but the newest two. StorageError when there is no space. `weights`: the
    trainable tensors by name. The first rank writes; with sharded weights, all ranks have to call this."""
    if not (ranks.is_main or ranks.sharded):
        return
    tensors = dict(weights)
    for name, weight in weights.items():  # none before the first step, or without a gradient
        tensors |= {f"{key}/{name}": value for key, value in _tensors(optimizer.state.get(weight, {}))}
    tensors = gather(tensors, ranks)
    if ranks.is_main:
        _write(folder, state, tensors)


def _write(folder: Path, state: TrainingState, tensors: Mapping[str, Any]) -> None:
    target = folder / f"step-{state.step:08d}"
    scratch = folder / f".{target.name}.{os.getpid()}"
    try:
        with writing(target):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            write_tensors(tensors, scratch / "tensors.safetensors")
            plain = asdict(state) | {"sha256": sha256_file(scratch / "tensors.safetensors")}
            (scratch / "state.json").write_text(json.dumps(plain), "utf-8")
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    best_weights.keep_only(folder, {_best_step(kept) for kept in folder.glob("step-*")})


def _best_step(checkpoint: Path) -> int:
    """Of the weights that a checkpoint needs; 0, which none has, for one that is damaged."""
    try:
        return int(json.loads((checkpoint / "state.json").read_text("utf-8"))["best_step"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0


def _tensors(state: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """One weight's optimizer state as tensors. bitsandbytes counts steps in an int, and its weights share their tables
    of 256 values, which a safetensors file cannot."""
    import torch

    found = {key: torch.as_tensor(value) for key, value in state.items()}
    return [(key, value.clone() if key in SHARED else value) for key, value in found.items()]


def load(
    folder: Path,
    weights: Mapping[str, Any],
    optimizer: Any,
    report: Reporter,
    identity: Mapping[str, Any] | None = None,
    ranks: Ranks = ALONE,
) -> TrainingState:
    """Restore the newest intact checkpoint and return its state; a new state if there is none. Damaged checkpoints are
    logged, and deleted by the first rank. TrainingFailed for a checkpoint of another training than that of `identity`;
    StorageError where one cannot be read: it may be intact."""
    if identity:
        require_same(folder, identity)
    if ranks.is_main:
        _delete_unfinished(folder)
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            state, tensors = _read(candidate, weights)
        except (FileNotFoundError, ValueError, LookupError, TypeError) as error:
            report.log(f"the checkpoint {candidate.name} is damaged ({error}); using the previous one")
            if ranks.is_main:
                shutil.rmtree(candidate)
            continue
        except OSError as error:
            raise StorageError(
                f"the checkpoint {candidate} cannot be read: {error}",
                "check the disk and the permissions, and run again",
            ) from error
        _restore(tensors, weights, optimizer)
        report.log(f"resuming from the checkpoint at step {state.step}")
        return state
    return TrainingState(identity=dict(identity or {}))


def _delete_unfinished(folder: Path) -> None:
    """What a process that was killed while it wrote has left."""
    for unfinished in folder.glob(".step-*"):
        shutil.rmtree(unfinished)
    best_weights.delete_unfinished(folder)


def require_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """TrainingFailed when a checkpoint in the folder belongs to another training. It reads JSON only, so it can be
    called before a model is loaded; damaged checkpoints are left to `load`."""
    for path in sorted(folder.glob("step-*/state.json"), reverse=True):
        try:
            before = dict(json.loads(path.read_text("utf-8"))["identity"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
        names = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
        if before and names:
            was, now = before.get(names[0]), identity.get(names[0])
            more = f" (and {len(names) - 1} more differ)" if len(names) > 1 else ""
            raise TrainingFailed(
                f"the checkpoint {path.parent.name} in {folder} is of another training: its {names[0]} is {was!r}, "
                f"and here it is {now!r}{more}",
                f"delete {folder} to train from the beginning, or declare the training as it was",
            )


def _read(folder: Path, weights: Mapping[str, Any]) -> tuple[TrainingState, dict[str, Any]]:
    """State and tensors of a checkpoint, checked completely. ValueError or KeyError when they do not fit."""
    from safetensors.torch import load_file

    plain = json.loads((folder / "state.json").read_text("utf-8"))
    if plain.pop("sha256") != sha256_file(folder / "tensors.safetensors"):
        raise ValueError("its tensors have another hash than when they were written")
    state, tensors = TrainingState(**plain), load_file(folder / "tensors.safetensors")
    if state.best_sha256 and sha256_file(best_weights.path(folder.parent, state.best_step)) != state.best_sha256:
        raise ValueError("the best weights have another hash than when they were written")
    for name, weight in weights.items():
        if tensors[name].shape != weight.shape:
            raise ValueError(f"{name} is {list(tensors[name].shape)}, not {list(weight.shape)}")
    if state.step and not any(f"step/{name}" in tensors for name in weights):
        raise ValueError("it has no optimizer state")
    return state, tensors


def _restore(tensors: Mapping[str, Any], weights: Mapping[str, Any], optimizer: Any) -> None:
    import torch

    states: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        kind, slash, name = key.partition("/")
        if slash:
            states.setdefault(name, {})[kind] = value
    for name, weight in weights.items():
        restore(weight, tensors[name])
        if name in states:
            restored = {kind: part_of(value, weight) for kind, value in states[name].items()}
            if not isinstance(optimizer, torch.optim.AdamW):
                restored["step"] = int(restored["step"])
            optimizer.state[weight] = restored
