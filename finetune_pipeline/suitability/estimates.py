"""Estimate time, memory and cost of a training from the rows' mean lengths, within a factor of about two. Pure.

    estimate_training(facts, architecture, train, suitability, machine).training_seconds        # 68.3

Memory, work and time are those of the plan before the training (models/training_memory.py, models/training_work.py);
there they are computed from every row, after review and split. A step has its rows' prompts and completions, the system
prompt once, and the texts of `train.keep_general`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Suitability, Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.gpu_fit import GpuFit, gpu_fits
from finetune_pipeline.models.training_fit import Fit, fits_by_method
from finetune_pipeline.models.training_load import NOTHING, Load, TrainingLoads
from finetune_pipeline.models.training_memory import Setting
from finetune_pipeline.models.training_work import UTILIZATION, training_work
from finetune_pipeline.suitability.facts import Facts

GENERAL_TOKENS = 60  # per text of `train.keep_general`
DAYS_PER_MONTH = 365.25 / 12


@dataclass(frozen=True)
class Machine(JobData):
    """The device that trains ("cpu" or "cuda") and the precision ("bf16" or "fp32"). `gflops`: speed of a matrix
    product in that precision, in 10^9 operations per second; `free_mb`: free memory."""

    gflops: float
    free_mb: float
    device: str = "cpu"
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, memory and cost of one training, and the monthly cost of a prompted and of a tuned model.

    `training_tokens` pass the tuned layers; `fits`: on this machine, by method; `gpus`: on common GPUs.
    `break_even_months` is None where prompting stays cheaper; `break_even_requests` is the load per day at which the
    running costs are equal (None: never, since the price is 0).
    """

    adapter_parameters: int
    training_tokens: float
    training_flops: float
    training_seconds: float
    fits: dict[str, Fit]
    gpus: tuple[GpuFit, ...]
    training_cost: float
    prompted_per_month: float
    tuned_per_month: float
    break_even_months: float | None
    break_even_requests: float | None


def estimate_training(
    facts: Facts, architecture: Architecture, train: Train, config: Suitability, machine: Machine
) -> Estimate:
    """The estimate for the declared training on this machine, at the declared prices."""
    loads = training_loads(facts, train)
    work = training_work(architecture, train, loads)
    seconds = work.seconds(machine.gflops * 1e9 * UTILIZATION[machine.device])
    cost = seconds / 3600 * config.training_per_hour
    per_request = (facts.few_shot_prompt_tokens + facts.completion_tokens) / 1e6 * config.prompted_price
    prompted = config.requests_per_day * DAYS_PER_MONTH * per_request
    saved = prompted - config.hosting_per_month
    setting = Setting(machine.device, machine.precision == "bf16")
    largest, longest = largest_pass(facts, train), batch_load(facts, train, 1)
    return Estimate(
        adapter_parameters=architecture.adapter_parameters(train),
        training_tokens=loads.steps.tokens,
        training_flops=work.steps,
        training_seconds=seconds,
        fits=fits_by_method(architecture, train, setting, largest, longest, machine.free_mb),
        gpus=gpu_fits(architecture, train, setting.forward, largest, longest, loads, config.gpu_per_hour),
        training_cost=cost,
        prompted_per_month=prompted,
        tuned_per_month=config.hosting_per_month,
        break_even_months=cost / saved if saved > 0 else None,
        break_even_requests=config.hosting_per_month / DAYS_PER_MONTH / per_request if per_request > 0 else None,
    )


def training_loads(facts: Facts, train: Train) -> TrainingLoads:
    """All optimizer steps. The layers below the trained ones compute the rows of one epoch, and keep their output."""
    rows = facts.usable * facts.train_share
    steps = ceil(rows / train.batch_size * train.num_epochs)
    every = batch_load(facts, train, train.num_epochs * rows / steps).times(steps) if steps else NOTHING
    return TrainingLoads(every, every.times(min(1.0, 1 / train.num_epochs)))


def batch_load(facts: Facts, train: Train, rows: float) -> Load:
    """`rows` rows as one packed batch: the system prompt once, the rows behind it, and the general texts."""
    system, own = facts.system_tokens, facts.prompt_tokens + facts.completion_tokens
    texts = train.keep_general.texts if train.keep_general.weight else 0
    general = GENERAL_TOKENS * texts
    return Load(
        tokens=system + rows * own + general,
        keys=system + rows * (system + own) + general,
        pairs=system**2 / 2 + rows * (own**2 / 2 + own * system) + texts * GENERAL_TOKENS**2 / 2,
        learned=rows * facts.completion_tokens + general,
        general=general,
    )


def largest_pass(facts: Facts, train: Train) -> Load:
    """A batch, as far as `train.max_tokens_per_batch` lets it be one pass."""
    batch = batch_load(facts, train, train.batch_size)
    return batch.times(min(1.0, train.max_tokens_per_batch / batch.tokens)) if batch.tokens else batch
