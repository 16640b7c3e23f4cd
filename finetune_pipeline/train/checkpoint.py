"""Checkpoints of a training: adapter, optimiser state and history, as safetensors and JSON; each is whole or absent.

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

from finetune_pipeline.records import Reporter
from finetune_pipeline.store import sha256_file, storage_error

KEPT = 2


@dataclass
class State:
    """Where a training stands: steps done, its MLflow run, and one line of history a step."""

    step: int = 0
    run_id: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def save(folder: Path, state: State, weights: Mapping[str, Any], optimiser: Any) -> None:
    """Write a checkpoint beside the older ones; keep the newest two. StorageError when there is no room."""
    from safetensors.torch import save_file

    target = folder / f"step-{state.step:08d}"
    scratch = folder / f".{target.name}.{os.getpid()}"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        tensors = {name: weight.detach().contiguous() for name, weight in weights.items()}
        for name, weight in weights.items():
            for moment in ("exp_avg", "exp_avg_sq"):
                if weight in optimiser.state:
                    tensors[f"{moment}/{name}"] = optimiser.state[weight][moment]
        save_file(tensors, scratch / "tensors.safetensors")
        plain = asdict(state) | {"sha256": sha256_file(scratch / "tensors.safetensors")}
        (scratch / "state.json").write_text(json.dumps(plain), "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    except OSError as error:
        raise storage_error(error, str(target)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def load(folder: Path, weights: Mapping[str, Any], optimiser: Any, report: Reporter) -> State:
    """Go on from the newest checkpoint that is whole; a damaged one is reported and removed. A new State if none is."""
    for found in sorted(folder.glob("step-*"), reverse=True):
        state = _read(found, report)
        if state is not None:
            _restore(found, state.step, weights, optimiser)
            report.log(f"going on from the checkpoint at step {state.step}")
            return state
        shutil.rmtree(found)
    return State()


def _read(folder: Path, report: Reporter) -> State | None:
    try:
        plain = json.loads((folder / "state.json").read_text("utf-8"))
        if plain.pop("sha256") != sha256_file(folder / "tensors.safetensors"):
            raise ValueError("its tensors are not those that were written")
        return State(**plain)
    except (OSError, ValueError, KeyError, TypeError) as error:
        report.log(f"the checkpoint {folder.name} is damaged ({error}); taking the one before")
        return None


def _restore(folder: Path, step: int, weights: Mapping[str, Any], optimiser: Any) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "tensors.safetensors")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(tensors[name])
            moments = {m: tensors[f"{m}/{name}"].to(weight.device) for m in ("exp_avg", "exp_avg_sq")}
            optimiser.state[weight] = {"step": torch.tensor(float(step)), **moments}
