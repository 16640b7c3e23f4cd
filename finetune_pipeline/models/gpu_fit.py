"""On which GPUs a training fits, how long it takes there, and what that costs. Pure.

    gpu_fits(architecture, Train(), "packed", pass_load, longest, loads, {"h100": 2.5})
    # (GpuFit("l4", "lora", count=1, verdict="FITS", …), …): every GPU of models/gpus.py, for every method
    gpu_rows(fits, "USD")      # [("NVIDIA L4 24 GB", "1 GPU: 12 min, 0.20 USD", "1 GPU: 14 min", "not in 8"), …]

A method gets the smallest number of GPUs in which it fits: several of them share the weights (`shard` of the backend),
which a base model in 4 bits cannot (train/sharding.py). Time is useful work by the GPUs' speed in bf16
and the share of it that trainings reach (models/training_work.py), without what the GPUs wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import GpuName, Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.gpus import COUNTS, GPUS, Gpu
from finetune_pipeline.models.trained_weights import METHODS
from finetune_pipeline.models.training_fit import Fit, Verdict, fit
from finetune_pipeline.models.training_load import Load, TrainingLoads
from finetune_pipeline.models.training_memory import Setting
from finetune_pipeline.models.training_work import UTILIZATION, training_work
from finetune_pipeline.statistics.formatting import duration


@dataclass(frozen=True)
class GpuFit(JobData):
    """`gpu`: a key of GPUS; `count`: how many of them; where the verdict is TOO BIG, the most that were tried;
    `memory_mb`: of each; `seconds`: of the training, `cost`: at the declared price per hour; None where it does not
    fit, or has no price."""

    gpu: GpuName
    method: str
    count: int
    verdict: Verdict
    checkpointing: bool
    memory_mb: float
    seconds: float | None
    cost: float | None


def gpu_fits(
    architecture: Architecture,
    rules: Train,
    forward: str,
    largest: Load,
    longest: Load,
    loads: TrainingLoads,
    prices: Mapping[GpuName, float],
) -> tuple[GpuFit, ...]:
    """For every GPU and method. `forward`: "packed" or "padded"; `largest`: the largest pass as declared, `longest`:
    that of the longest row alone; `loads`: of the whole training; `prices`: per hour of one GPU, by its key."""
    found = []
    for method in METHODS:
        changed = rules.model_copy(update={"method": method})
        work = training_work(architecture, changed, loads)
        for name, gpu in GPUS.items():
            count, best = _smallest(architecture, changed, forward, largest, longest, gpu)
            fits = best.verdict != "TOO BIG"
            speed = count * gpu.tflops * 1e12 * UTILIZATION["cuda"]
            seconds = work.seconds(speed, best.checkpointing) if fits else None
            cost = seconds / 3600 * count * prices[name] if seconds is not None and name in prices else None
            memory = best.memory.total_mb
            found.append(GpuFit(name, method, count, best.verdict, best.checkpointing, memory, seconds, cost))
    return tuple(found)


def _smallest(
    architecture: Architecture, rules: Train, forward: str, largest: Load, longest: Load, gpu: Gpu
) -> tuple[int, Fit]:
    """The smallest number of GPUs that the training fits in, else that it is tight in, else the largest number."""
    bf16, tried = rules.precision != "fp32", []
    for count in COUNTS[:1] if rules.method == "qlora" else COUNTS:
        setting = Setting("cuda", bf16, forward, devices=count)
        tried.append((count, fit(architecture, rules, setting, largest, longest, gpu.memory_mb)))
        if tried[-1][1].verdict == "FITS":
            return tried[-1]
    return next((each for each in tried if each[1].verdict == "TIGHT"), tried[-1])


def gpu_rows(fits: Iterable[GpuFit], currency: str) -> list[tuple[str, ...]]:
    """The rows of a table: the name of a GPU, and for every method how many it takes, the time, and the price where one
    is declared. An asterisk stands for gradient checkpointing."""
    by_gpu: dict[GpuName, dict[str, GpuFit]] = {}
    for each in fits:
        by_gpu.setdefault(each.gpu, {})[each.method] = each
    return [
        (GPUS[name].name, *(_in_words(methods[method], currency) for method in METHODS))
        for name, methods in by_gpu.items()
    ]


def _in_words(fit: GpuFit, currency: str) -> str:
    if fit.seconds is None:
        return f"not in {fit.count}"
    tight = " (TIGHT)" if fit.verdict == "TIGHT" else ""
    cost = "" if fit.cost is None else f", {fit.cost:.2f} {currency}"
    count = f"{fit.count} GPU{'s' * (fit.count > 1)}{'*' * fit.checkpointing}"
    return f"{count}{tight}: {duration(fit.seconds)}{cost}"
