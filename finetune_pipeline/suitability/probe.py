"""Measure how fast this machine multiplies matrices, on the device and in the precision of a training.

    measure_machine(Train(precision="auto"), folder, report)   # Machine(gflops=1180.0, free_mb=…, "cpu", "bf16")

The measurement is a job in a process of its own, started like a training (same threads, and no other job on the machine
at the same time), so that torch is not imported here.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from finetune_pipeline.backends import local, worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train
from finetune_pipeline.models.device import kind, name_of, uses_bf16
from finetune_pipeline.records import Reporter
from finetune_pipeline.suitability.estimates import Machine

SECONDS = 0.5
MIN_PRODUCTS = 5  # however long they take
ROWS = 512  # about the tokens of a training step
WIDTH = {"cpu": 1536, "cuda": 8192}


@dataclass(frozen=True)
class ProbeSpec(JobData):
    """The job's description: `precision` is `train.precision` ("auto", "bf16" or "fp32")."""

    precision: str


def measure_machine(train: Train, folder: Path, report: Reporter) -> Machine:
    """Speed and free memory of the device that such a training uses; `folder` takes the job's files."""
    return local.run(__name__, ProbeSpec(train.precision), Machine, folder, report, train.threads)


def run(spec: ProbeSpec, report: Reporter) -> Machine:
    """The job."""
    device, bf16 = kind(), uses_bf16(spec.precision)
    return Machine(gflops(device, bf16), free_mb(device), device, name_of(bf16))


def gflops(device: str, bf16: bool, seconds: float = SECONDS) -> float:
    """Speed of the product of a step's tokens with a weight matrix, in 10^9 floating-point operations per second.

    On a processor the time is CPU time per thread, so that other load on the machine does not make it look slow.
    """
    import torch

    width = WIDTH[device]
    dtype = torch.bfloat16 if bf16 else torch.float32
    left, right = (torch.randn(rows, width, device=device, dtype=dtype) for rows in (ROWS, width))

    clock, threads = (time.perf_counter, 1) if device == "cuda" else (time.process_time, torch.get_num_threads())

    def multiply() -> None:
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()

    multiply()  # the first call starts the threads
    count, start, end = 0, clock(), time.perf_counter() + seconds
    while time.perf_counter() < end or count < MIN_PRODUCTS:
        multiply()
        count += 1
    return 2 * ROWS * width * width * count * threads / (clock() - start) / 1e9


def free_mb(device: str) -> float:
    """Free memory of the device, in MB (10^6 bytes)."""
    import torch

    return float(torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available) / 1e6


if __name__ == "__main__":
    worker.main(run, ProbeSpec)
