"""What the job of a plan gets and returns: the description in job.json, and the content of plan.json.

result = launch.run("finetune_pipeline.train.plan.job", spec, TrainingPlan, folder, report, backend)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import GpuName
from finetune_pipeline.models.gpu_fit import GpuFit
from finetune_pipeline.models.trained_weights import Method
from finetune_pipeline.models.training_fit import Fit
from finetune_pipeline.models.training_work import UTILIZATION
from finetune_pipeline.train.spec import TrainingSpec


@dataclass(frozen=True)
class PlanSpec(JobData):
    """`training`: the declared training, whose `out` gets the audit and the token view; `folder`: an absolute path for
    temporary files; `nodes`: machines of the backend, with `processes_per_node` processes each; `sharded`: the methods
    with which each process holds a part of the weights; `per_hour`: price of a machine that trains, `gpu_per_hour`: of
    one GPU."""

    training: TrainingSpec
    folder: Path
    nodes: int = 1
    processes_per_node: int = 1
    sharded: tuple[Method, ...] = ()
    per_hour: float = 0.0
    gpu_per_hour: dict[GpuName, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Device(JobData):
    """Where the training runs. `kind`: "cpu" or "cuda"; `name`: of the GPU, else "processor"; `gflops`: measured speed
    of a matrix product in the training's `precision`; `available_mb`: memory for one of the `processes`, which are on
    `nodes` machines; `disk_mb`: free for checkpoints."""

    kind: str
    name: str
    precision: str
    gflops: float
    available_mb: float
    processes: int
    nodes: int = 1
    disk_mb: float = 0.0

    @property
    def together(self) -> int:
        """How many times as fast as one process all of them are: each has a GPU of its own, or shares the processor of
        its machine."""
        return self.processes if self.kind == "cuda" else self.nodes

    @property
    def expected_speed(self) -> float:
        """Of one process in a training, where no step was measured (operations per second)."""
        return self.gflops * 1e9 * UTILIZATION[self.kind]


@dataclass(frozen=True)
class Probe(JobData):
    """Steps of the training that were run for the plan, in one process, and thrown away. `step_gflops`: 10^9 useful
    operations per second in `steps` steps of `rows` rows each, which took `step_seconds` on average; `pass_gflops`: in
    forward passes alone; `answers_seconds`: for the validation rows that are answered, 0 where none are;
    `start_seconds`: from the start of the process to the first step; `peak_mb`: measured; `largest`: whether the
    largest batch of the training was among the steps (not timed); `max_tokens`: in one pass; `ran_out`: whether memory
    ran out, so that this is lower than declared."""

    steps: int
    rows: int
    step_seconds: float
    step_gflops: float
    pass_gflops: float
    answers_seconds: float
    start_seconds: float
    peak_mb: float
    largest: bool
    max_tokens: int
    ran_out: bool = False


@dataclass(frozen=True)
class Times(JobData):
    """Seconds of a training. `start`: process, libraries, model, checks; `base`: what is measured of the model before
    training; `validation`: with the answers to validation rows."""

    start: float
    base: float
    steps: float
    validation: float

    @property
    def total(self) -> float:
        return self.start + self.base + self.steps + self.validation


@dataclass(frozen=True)
class TrainingPlan(JobData):
    """plan.json. `forward`: "packed" or "padded" rows; `tokens`: that pass the layers in one step, on average;
    `micro_batches`: passes of the largest batch, `pass_tokens`: of the largest of them, as declared; `fit`: of the
    declared training on the `device`; `most_tokens`: the largest `train.max_tokens_per_batch` that fits, None where
    nothing does; `fits`: by method; `gpus`: on common GPUs; `cost`: of all machines, at
    `suitability.training_per_hour`; `checkpoints_mb`: disk space of the checkpoints; `probe`: None where no step was
    run, and `unmeasured` says why; `recommended`: a method, None where none fits."""

    device: Device
    method: str
    objective: str
    forward: str
    rows: int
    validation_rows: int
    steps: int
    validations: int
    tokens: float
    micro_batches: int
    pass_tokens: float
    fit: Fit
    most_tokens: int | None
    fits: dict[str, Fit]
    gpus: tuple[GpuFit, ...]
    times: Times
    cost: float
    recommended: str | None
    recommended_why: str
    checkpoints_mb: float = 0.0
    probe: Probe | None = None
    unmeasured: str = ""
