"""A small training of several ranks for the tests: LoRA on a tiny model, fp32, a checkpoint at every step."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_pipeline.backends import worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import sha256_file
from finetune_pipeline.train.distributed import Ranks, joined

STEPS, BATCH, WORDS = 6, 8, 300


@dataclass(frozen=True)
class Tuning(JobData):
    """`kill`: the step at which rank 1 kills itself once, 0: never; `endless`: it goes on until it is canceled."""

    base: Path
    out: Path
    kill: int = 0
    endless: bool = False


@dataclass(frozen=True)
class Tuned(JobData):
    losses: list[float]
    norms: list[float]
    sha256: str
    size: int
    resumed_at: int


def run(spec: Tuning, report: Reporter) -> Tuned:
    with joined() as ranks:
        return _train(spec, report, ranks)


def _train(spec: Tuning, report: Reporter, ranks: Ranks) -> Tuned:
    import torch

    (spec.out / f"pid-{os.getpid()}").touch()
    model, weights = _model(spec.base, seed=ranks.rank)  # the ranks begin differently, until the broadcast
    ranks.broadcast(weights.values())
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-2)
    state = _load(spec.out / "state.pt", weights, optimizer)
    resumed_at = step = state["step"]
    rows = [np.random.default_rng(n).integers(3, WORDS, 5 + n % 40).tolist() for n in range(64)]
    while step < STEPS or spec.endless:
        if ranks.canceled(report):
            _save(spec.out / "state.pt", ranks, {**state, "step": step}, weights, optimizer)
            raise JobCanceled("stopped on request")
        if ranks.rank == 1 and step == spec.kill > 0 and not (spec.out / "killed").exists():
            (spec.out / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        loss, norm = _step(model, weights, optimizer, rows, step, ranks)
        step += 1
        state = {"losses": [*state["losses"], loss], "norms": [*state["norms"], norm]}
        if not spec.endless:
            _save(spec.out / "state.pt", ranks, {**state, "step": step}, weights, optimizer)
        ranks.require_agreement(step, weights)
        report.progress("training", step, STEPS, loss=loss)
    digest = _digest(spec.out, ranks, weights)
    return Tuned(state["losses"], state["norms"], digest, ranks.size, resumed_at)


def _model(base: Path, seed: int) -> tuple[Any, dict[str, Any]]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)  # a random adapter, not a zero one
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    return model, {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _step(model: Any, weights: Any, optimizer: Any, rows: Any, step: int, ranks: Ranks) -> tuple[float, float]:
    """One optimizer step: every row a forward and backward pass of its own."""
    import torch

    batch = [rows[(step * BATCH + offset) % len(rows)] for offset in range(BATCH)]
    lengths = [len(row) for row in batch]
    supervised, total = sum(lengths) - len(batch), 0.0
    for row in ranks.share(batch, lengths):
        ids = torch.tensor([row])
        logits = model(input_ids=ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / supervised
        loss.backward()
        total += float(loss.detach())
    ranks.sum_gradients(weights.values())
    norm = float(torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return ranks.sum([total])[0], norm


def _save(path: Path, ranks: Ranks, state: dict[str, Any], weights: Any, optimizer: Any) -> None:
    import torch

    if ranks.is_main:
        torch.save({**state, "weights": weights, "optimizer": optimizer.state_dict()}, path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    ranks.barrier()


def _load(path: Path, weights: Any, optimizer: Any) -> dict[str, Any]:
    import torch

    if not path.exists():
        return {"step": 0, "losses": [], "norms": []}
    state: dict[str, Any] = torch.load(path, weights_only=True)
    optimizer.load_state_dict(state.pop("optimizer"))
    with torch.no_grad():
        for name, value in state.pop("weights").items():
            weights[name].copy_(value)
    return state


def _digest(out: Path, ranks: Ranks, weights: Any) -> str:
    from safetensors.torch import save_file

    path = out / f"weights-{ranks.rank}.safetensors"
    save_file({name: weight.detach() for name, weight in weights.items()}, path)
    return sha256_file(path)


if __name__ == "__main__":
    worker.main(run, Tuning)
