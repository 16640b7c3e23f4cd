"""Checkpoints of a training: adapter, optimizer state and history, as safetensors and JSON; each is whole or absent.

    checkpoints/step-00000040/tensors.safetensors, state.json     # state.json holds the hash of the tensors

Nothing else is needed to go on exactly: order, batches, learning rate and dropout depend on seed and step alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from finetune_pipeline.models.model_files import writing
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import sha256_file

KEPT = 2


@dataclass
class State:
    """Where a training stands: steps done, its MLflow run, one line of history a step, and what it computed in: more
    than one precision where `precision: auto` went on on a machine of another kind."""

    step: int = 0
    run_id: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    precisions: list[str] = field(default_factory=list)


def save(folder: Path, state: State, weights: Mapping[str, Any], optimizer: Any) -> None:
    """Write a checkpoint beside the older ones; keep the newest two. StorageError when there is no room."""
    from safetensors.torch import save_file

    target = folder / f"step-{state.step:08d}"
    scratch = folder / f".{target.name}.{os.getpid()}"
    try:
        with writing(target):
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            tensors = {name: weight.detach().contiguous() for name, weight in weights.items()}
            for name, weight in weights.items():  # nothing before the first step, or for a weight without a gradient
                tensors |= {f"{part}/{name}": value for part, value in optimizer.state.get(weight, {}).items()}
            save_file(tensors, scratch / "tensors.safetensors")
            plain = asdict(state) | {"sha256": sha256_file(scratch / "tensors.safetensors")}
            (scratch / "state.json").write_text(json.dumps(plain), "utf-8")
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def load(folder: Path, weights: Mapping[str, Any], optimizer: Any, report: Reporter) -> State:
    """Go on from the newest checkpoint that is whole; a damaged one is reported and removed. A new State if none is."""
    for found in sorted(folder.glob("step-*"), reverse=True):
        try:
            state, tensors = _read(found, weights)
        except (OSError, ValueError, LookupError, TypeError) as error:
            report.log(f"the checkpoint {found.name} is damaged ({error}); taking the one before")
            shutil.rmtree(found)
            continue
        _restore(tensors, weights, optimizer)
        report.log(f"going on from the checkpoint at step {state.step}")
        return state
    return State()


def _read(folder: Path, weights: Mapping[str, Any]) -> tuple[State, dict[str, Any]]:
    """State and tensors, checked before anything is changed: a ValueError or KeyError where they do not fit."""
    from safetensors.torch import load_file

    plain = json.loads((folder / "state.json").read_text("utf-8"))
    if plain.pop("sha256") != sha256_file(folder / "tensors.safetensors"):
        raise ValueError("its tensors are not those that were written")
    state, tensors = State(**plain), load_file(folder / "tensors.safetensors")
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
                moments = {part: tensors[f"{part}/{name}"].to(weight.device) for part in ("exp_avg", "exp_avg_sq")}
                optimizer.state[weight] = {"step": tensors[f"step/{name}"], **moments}
