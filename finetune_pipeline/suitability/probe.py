"""Measure how fast this machine multiplies matrices, on the device and in the precision of a training.

    measure_machine(Train(precision="auto"), folder, report)   # Machine(gflops=1180.0, free_mb=…, "cpu", "bf16")

The measurement is a job in a process of its own, started like a training (same threads, and no other job on the machine
at the same time), so that torch is not imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.backends import local, worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train
from finetune_pipeline.models.device import free_mb, kind, name_of, uses_bf16
from finetune_pipeline.models.gemm import gflops
from finetune_pipeline.records import Reporter
from finetune_pipeline.suitability.estimates import Machine


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
    return Machine(gflops(device, bf16), free_mb(), device, name_of(bf16))


if __name__ == "__main__":
    worker.main(run, ProbeSpec)
