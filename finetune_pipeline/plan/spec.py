"""What the probe of a training gets and returns (train/probe.py, a job in a process of its own).

result = local.run(PROBE, spec, ProbeResult, folder, report, threads)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import AnswerFormat, Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.training_load import Load

PROBE = "finetune_pipeline.train.probe"


@dataclass(frozen=True)
class ProbeSpec(JobData):
    """As of a training (train/spec.py). `out`: an empty folder; `steps`: to be timed, after one that is not; 0: sizes
    alone, without loading the model."""

    task: str
    base: Path
    train: Path
    validation: Path
    system: str
    answer: AnswerFormat
    rules: Train
    out: Path
    steps: int = 4


@dataclass(frozen=True)
class Machine(JobData):
    """The device at hand. `device`: "cpu" or "cuda"; `name`: of the GPU; `gflops`: speed of a matrix product in the
    training's `precision`; `available_mb`: memory that the training could have now, of `total_mb`."""

    device: str
    name: str
    precision: str
    gflops: float
    available_mb: float
    total_mb: float


@dataclass(frozen=True)
class Sizes(JobData):
    """Of the declared training. `steps`, `validations`: their numbers; `parts`: micro-batches of the largest step;
    `largest`: the pass that needs the most memory; `longest`: that of the longest row alone; `step`: the mean of a
    step, all its passes together; `validation`: of all validation rows; `once`: forward passes before the first step
    (the reference of dpo) and of frozen layers."""

    rows: int
    validation_rows: int
    steps: int
    validations: int
    parts: int
    largest: Load
    longest: Load
    step: Load
    validation: Load
    once: Load


@dataclass(frozen=True)
class ProbedStep(JobData):
    """`flops`: useful operations; `seconds` on the clock; `cpu_seconds`: of all threads."""

    flops: float
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Measured(JobData):
    """`forward`: "packed" or "padded" rows; `checkpointing`, `tokens`: as the training chose them; `start_seconds`:
    loading and the comparison before the first step; `forward_seconds` of `forward_flops`: a pass without gradients;
    `score_seconds`: answering validation rows; `peak_mb`: memory of the device; `others`: share of the processor that
    other programs took meanwhile; `threads`: of this process."""

    forward: str
    checkpointing: bool
    tokens: int
    start_seconds: float
    steps: tuple[ProbedStep, ...]
    forward_flops: float
    forward_seconds: float
    score_seconds: float
    peak_mb: float
    others: float
    threads: int


@dataclass(frozen=True)
class ProbeResult(JobData):
    """`measured`: None where the training does not fit, or nothing was to be measured."""

    machine: Machine
    architecture: Architecture
    sizes: Sizes
    measured: Measured | None
