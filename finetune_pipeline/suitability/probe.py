"""Measure how fast this machine multiplies matrices, on the device and in the precision of a training.

    probe = measure(Train(precision="auto"), base, folder, report)
    probe.machine             # Machine(gflops=1180.0, free_mb=…, "cpu", "bf16")
    probe.architecture        # the sizes of the base model's parts

The measurement is a job in a process of its own, started like a training (same threads, and no other job on the machine
at the same time), so that torch is not imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.backends import local, worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train
from finetune_pipeline.inference.base_weights import base_errors, require_known
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.device import free_mb, kind, name_of, uses_bf16
from finetune_pipeline.models.gemm import gflops
from finetune_pipeline.records import Reporter
from finetune_pipeline.suitability.estimates import Machine


@dataclass(frozen=True)
class ProbeSpec(JobData):
    """The job's description: `precision` is `train.precision` ("auto", "bf16" or "fp32"), `base` the folder of the base
    model."""

    precision: str
    base: Path


@dataclass(frozen=True)
class Probe(JobData):
    """What the job returns."""

    machine: Machine
    architecture: Architecture


def measure(train: Train, base: Path, folder: Path, report: Reporter) -> Probe:
    """Speed and free memory of the device that such a training uses, and the sizes of the base model in the folder
    `base`; `folder` takes the job's files. ModelError for a model whose layout is not known."""
    return local.run(__name__, ProbeSpec(train.precision, base.absolute()), Probe, folder, report, train.threads)


def run(spec: ProbeSpec, report: Reporter) -> Probe:
    """The job."""
    device, bf16 = kind(), uses_bf16(spec.precision)
    machine = Machine(gflops(device, bf16), free_mb(), device, name_of(bf16))
    with base_errors(spec.base):
        require_known(spec.base)
        return Probe(machine, Architecture.of_folder(spec.base))


if __name__ == "__main__":
    worker.main(run, ProbeSpec)
