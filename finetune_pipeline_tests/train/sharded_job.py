"""A small training with sharded weights for the tests: full weights or LoRA, a checkpoint in the middle, a resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_pipeline.backends import worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.records import Reporter
from finetune_pipeline.store import sha256_file
from finetune_pipeline.train.distributed import Ranks, joined
from finetune_pipeline.train.sharding import as_forward, clip, gather, restore, shard

STEPS, BATCH = 4, 4


@dataclass(frozen=True)
class Sharding(JobData):
    """`resume`: begin from the checkpoint in `out`, which a training of half the steps has left."""

    base: Path
    out: Path
    method: str = "full"
    resume: bool = False


@dataclass(frozen=True)
class Sharded(JobData):
    losses: list[float]
    norms: list[float]
    sha256: str
    held: float
    hidden: float


def run(spec: Sharding, report: Reporter) -> Sharded:
    with joined() as ranks:
        return _train(spec, ranks)


def _train(spec: Sharding, ranks: Ranks) -> Sharded:
    import torch
    from safetensors.torch import save_file

    model = _model(spec)
    whole = sum(weight.numel() for weight in model.parameters())
    causal = model.get_base_model() if spec.method == "lora" else model
    shard(causal, causal.model.layers, ranks)
    hidden = as_forward(causal, "backbone", lambda self, ids: self.model(input_ids=ids).last_hidden_state)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    held = sum(getattr(weight, "_local_tensor", weight).numel() for weight in model.parameters()) / whole
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3)
    first = _load(spec.out / "checkpoint.safetensors", weights, optimizer) if spec.resume else 0
    losses, norms = list[float](), list[float]()
    for step in range(first, STEPS):
        loss, norm = _step(model, weights, optimizer, step, ranks)
        losses, norms = [*losses, loss], [*norms, norm]
        if step + 1 == STEPS // 2 and not spec.resume:
            _save(spec.out / "checkpoint.safetensors", weights, optimizer, ranks)
    with torch.no_grad():
        probe = float(hidden(torch.tensor([[5, 6, 7]], device=ranks.device)).abs().sum())
    tensors = gather(weights, ranks)
    if ranks.is_main:
        save_file(tensors, spec.out / "weights.safetensors")
    ranks.barrier()
    return Sharded(losses, norms, sha256_file(spec.out / "weights.safetensors"), held, probe)


def _model(spec: Sharding) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    dtype = torch.bfloat16 if spec.method == "lora" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(spec.base, dtype=dtype)
    if spec.method == "full":
        return model
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))


def _step(model: Any, weights: Any, optimizer: Any, step: int, ranks: Ranks) -> tuple[float, float]:
    import torch

    batch = [np.random.default_rng(step * BATCH + n).integers(3, 300, 6 + 5 * n).tolist() for n in range(BATCH)]
    lengths = [len(row) for row in batch]
    rows, supervised, total = ranks.share(batch, lengths), sum(lengths) - len(batch), 0.0
    for number in range(int(ranks.max(len(rows)))):  # every rank as often; beyond its own rows with a weight of 0
        ids = torch.tensor([rows[min(number, len(rows) - 1)]], device=ranks.device)
        logits = model(input_ids=ids).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / supervised
        loss = loss * float(number < len(rows))
        loss.backward()
        total += float(loss.detach())
    norm = clip(weights.values(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return ranks.sum([total])[0], norm


def _save(path: Path, weights: Any, optimizer: Any, ranks: Ranks) -> None:
    from safetensors.torch import save_file

    tensors = dict(weights)
    for name, weight in weights.items():
        tensors |= {f"{key}/{name}": value for key, value in optimizer.state[weight].items()}
    gathered = gather(tensors, ranks)
    if ranks.is_main:
        save_file(gathered, path)
    ranks.barrier()


def _load(path: Path, weights: Any, optimizer: Any) -> int:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(path)
    for name, weight in weights.items():
        restore(weight, tensors[name])
        moments = {key: torch.zeros_like(weight) for key in ("exp_avg", "exp_avg_sq")}
        for key, moment in moments.items():
            restore(moment, tensors[f"{key}/{name}"])
        optimizer.state[weight] = {"step": tensors[f"step/{name}"], **moments}
    return STEPS // 2


if __name__ == "__main__":
    worker.main(run, Sharding)
