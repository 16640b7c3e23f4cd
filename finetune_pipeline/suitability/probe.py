"""How fast this machine is at what training does: a job that multiplies matrices on its device, in its precision.

    measured(config.Train(precision="auto"), folder, report)      # Machine(gflops=1180.0, free_mb=..., "cpu", "bf16")

A process of its own, started as a training is (same threads, and alone on the machine): torch stays out of this one.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from finetune_pipeline.backends import local, worker
from finetune_pipeline.config import Train
from finetune_pipeline.models.device import kind, name_of, uses_bf16
from finetune_pipeline.records import Reporter
from finetune_pipeline.suitability.estimates import Machine

SECONDS = 0.5
LEAST = 5  # products, however long they take
ROWS = 512  # tokens of a training step, or thereabouts
WIDTH = {"cpu": 1536, "cuda": 8192}


def measured(train: Train, folder: Path, report: Reporter) -> Machine:
    """The machine as a training under this declaration finds it."""
    return Machine(**local.run(__name__, {"precision": train.precision}, folder, report, train.threads))


def run(spec: dict[str, Any], report: Reporter) -> dict[str, Any]:
    device, bf16 = kind(), uses_bf16(spec["precision"])
    return asdict(Machine(gflops(device, bf16), free_mb(device), device, name_of(bf16)))


def gflops(device: str, bf16: bool, seconds: float = SECONDS) -> float:
    """10^9 floating-point operations a second of a product of a step's tokens with a weight. On a processor they are a
    second of its own time on each thread: a machine that is busy at the moment is not a slow one."""
    import torch

    width = WIDTH[device]
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(rows, width, device=device, dtype=dtype) for rows in (ROWS, width))

    clock, threads = (time.perf_counter, 1) if device == "cuda" else (time.process_time, torch.get_num_threads())

    def once() -> None:
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    once()  # the first call starts the threads
    count, start, end = 0, clock(), time.perf_counter() + seconds
    while time.perf_counter() < end or count < LEAST:
        once()
        count += 1
    return 2 * ROWS * width * width * count * threads / (clock() - start) / 1e9


def free_mb(device: str) -> float:
    """Free memory of the device, in MB."""
    import torch

    return float(torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available) / 1e6


if __name__ == "__main__":
    worker.main(run)
