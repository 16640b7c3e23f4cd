"""The weights with the lowest validation loss so far, beside the checkpoints: checkpoints/best-00000025.safetensors.

sha256 = save(folder, 25, weights)      # of the file, for the training's state; "" on all ranks but the first
restore(folder, 25, weights)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.store import sha256_file
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.sharding import gather
from finetune_pipeline.train.sharding import restore as restore_tensor


def path(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def save(folder: Path, step: int, weights: Mapping[str, Any], ranks: Ranks = ALONE) -> str:
    """Write the trainable tensors, by name. StorageError when there is no space. The first rank writes; with sharded
    weights, all ranks have to call this."""
    if not (ranks.is_main or ranks.sharded):
        return ""
    tensors = gather(weights, ranks)
    if not ranks.is_main:
        return ""
    target = path(folder, step)
    scratch = folder / f".{target.name}.{os.getpid()}"
    try:
        with writing(target):
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(tensors, scratch)
            sha256 = sha256_file(scratch)
            scratch.rename(target)
    finally:
        scratch.unlink(missing_ok=True)
    return sha256


def restore(folder: Path, step: int, weights: Mapping[str, Any]) -> None:
    """Load the weights of a step. TrainingFailed when they are gone or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path(folder, step))
    except (OSError, SafetensorError) as error:
        raise TrainingFailed(
            f"the best weights, {path(folder, step)}, cannot be read: {error}",
            "run again: it goes on from the last checkpoint whose files are intact",
        ) from error
    for name, weight in weights.items():
        restore_tensor(weight, tensors[name])


def keep_only(folder: Path, steps: Collection[int]) -> None:
    """Delete the weights of other steps."""
    for best in set(folder.glob("best-*.safetensors")) - {path(folder, step) for step in steps}:
        best.unlink()


def delete_unfinished(folder: Path) -> None:
    """What a process that was killed while it wrote has left."""
    for unfinished in folder.glob(".best-*"):
        unfinished.unlink()


def write_tensors(tensors: Mapping[str, Any], target: Path) -> None:
    """Write a safetensors file. It is on the disk when this returns, so that a file which is renamed afterwards is
    whole, also after a loss of power."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
