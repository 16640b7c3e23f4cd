"""Estimate time, memory and cost of a training before it runs, within a factor of about two. Pure.

    estimate_training(facts, base, train, suitability, machine).training_seconds        # 68.3

Formulas and their sources:

    work         full: 6 N D floating-point operations for N parameters and D tokens, 2 N D forward and 4 N D backward
                 (Kaplan et al., "Scaling Laws for Neural Language Models", arXiv:2001.08361, section 2.1). LoRA needs
                 no gradients of the frozen weights, a third of that: 4 N D, and 6 n D for its own n parameters. N
                 counts the tuned layers; the layers below them (`train.layers`) are computed once per row, 2 N D. The
                 output layer is computed for supervised tokens only
    tokens       a step has its rows' prompts and completions, the system prompt once, and the texts of
                 `train.keep_general`, which the base model computes as well
    adapter      n = 17.7 r h L for rank r on all linear layers of L Llama-like blocks of hidden size h (feed-forward
                 8/3 h, keys and values h/3): r (in + out) for each layer, as in Hu et al., arXiv:2106.09685, section
                 4.2
    memory       weights 2 or 4 bytes (QLoRA 0.52: Dettmers et al., arXiv:2305.14314, section 3); trained parameters
                 16 bytes (weight, gradient, Adam's two moments in 4 bytes each; Rajbhandari et al., arXiv:1910.02054,
                 section 3.1); activations 34 h bytes per token and layer in 16 bits (Korthikanti et al.,
                 arXiv:2205.05198, equation 1, without the attention matrix); logits 12 bytes per supervised token
                 and vocabulary entry (value, its logarithm, gradient)
    time         work / (speed of a matrix product, measured by probe.py, x EFFICIENCY)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, get_args

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Suitability, Train
from finetune_pipeline.suitability.facts import Facts

EFFICIENCY = 0.43  # share of the matrix product's speed that training reaches, validation included (135M, bf16)
LIBRARIES_MB = 800  # torch and its dependencies
GENERAL_TOKENS = 60  # per text of `train.keep_general`
DAYS_PER_MONTH = 365.25 / 12
ADAPTER_WIDTH = 17.7  # q and o: 2 h each; k and v: 4/3 h each; gate, up and down: 11/3 h each
MB = 1e6


# The methods that are estimated here and that the declaration accepts: one that is added there is included.
METHODS = tuple(
    method for method in ("lora", "qlora", "full") if method in get_args(Train.model_fields["method"].annotation)
)


@dataclass(frozen=True, slots=True)
class BaseSize:
    """The size of the base model: parameters, hidden size, layers, and entries of the vocabulary."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int

    @staticmethod
    def from_json(described: Mapping[str, Any]) -> BaseSize:
        """From base_model.json. KeyError names a missing key."""
        return BaseSize(*(described[name] for name in ("parameters", "hidden", "layers", "vocabulary")))


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
    """Seconds, peak memory (MB by method, of the methods that the declaration accepts) and cost of one training, and
    the monthly cost of a prompted and of a tuned model.

    `break_even_months` is None where prompting stays cheaper; `break_even_requests` is the load per day at which the
    running costs are equal (None: never, since the price is 0).
    """

    adapter_parameters: int
    training_tokens: float
    training_flops: float
    training_seconds: float
    memory_mb: dict[str, float]
    training_cost: float
    prompted_per_month: float
    tuned_per_month: float
    break_even_months: float | None
    break_even_requests: float | None


def estimate_training(facts: Facts, base: BaseSize, train: Train, config: Suitability, machine: Machine) -> Estimate:
    """The estimate for the declared training on this machine, at the declared prices."""
    tokens, flops = training_work(facts, base, train)
    seconds = flops / (machine.gflops * 1e9 * EFFICIENCY)
    cost = seconds / 3600 * config.training_per_hour
    per_request = (facts.few_shot_prompt_tokens + facts.completion_tokens) / 1e6 * config.prompted_price
    prompted = config.requests_per_day * DAYS_PER_MONTH * per_request
    saved = prompted - config.hosting_per_month
    return Estimate(
        adapter_parameters=adapter_parameters(base, train),
        training_tokens=tokens,
        training_flops=flops,
        training_seconds=seconds,
        memory_mb={method: memory_mb(method, facts, base, train, machine.precision) for method in METHODS},
        training_cost=cost,
        prompted_per_month=prompted,
        tuned_per_month=config.hosting_per_month,
        break_even_months=cost / saved if saved > 0 else None,
        break_even_requests=config.hosting_per_month / DAYS_PER_MONTH / per_request if per_request > 0 else None,
    )


def training_work(facts: Facts, base: BaseSize, train: Train) -> tuple[float, float]:
    """The tokens that pass the tuned layers in a training, and its floating-point operations."""
    rows, row_tokens = facts.usable * facts.train_share, facts.prompt_tokens + facts.completion_tokens
    steps = ceil(rows / train.batch_size * train.num_epochs)
    general = _general_tokens(train) * steps
    supervised = train.num_epochs * rows * facts.completion_tokens
    tokens = train.num_epochs * rows * row_tokens + steps * facts.system_tokens + general
    tuned = tuned_layers(base, train)
    layer = (base.parameters - base.vocabulary * base.hidden) / base.layers
    head = base.vocabulary * base.hidden
    flops = (4 * tuned * layer + 6 * adapter_parameters(base, train)) * tokens
    flops += 2 * tuned * layer * general  # the base model's distribution over the general texts
    flops += head * (4 * supervised + 6 * general)
    flops += 2 * (base.layers - tuned) * layer * (rows * row_tokens + facts.system_tokens + general)
    return tokens, flops


def _general_tokens(train: Train) -> int:
    """Tokens of general texts per step."""
    return GENERAL_TOKENS * train.keep_general.texts if train.keep_general.weight else 0


def tuned_layers(base: BaseSize, train: Train) -> int:
    return min(train.layers or base.layers, base.layers)


def adapter_parameters(base: BaseSize, train: Train) -> int:
    """Trained parameters of a LoRA adapter on all linear layers of the tuned layers."""
    return round(ADAPTER_WIDTH * train.lora.r * base.hidden * tuned_layers(base, train))


def memory_mb(method: str, facts: Facts, base: BaseSize, train: Train, precision: str) -> float:
    """Peak memory of a training in MB: of a step, or of the validation, which fills `train.max_tokens_per_batch`."""
    bytes_per_value = 4 if precision == "fp32" else 2
    adapter = adapter_parameters(base, train)
    weights = {
        "lora": bytes_per_value * base.parameters + 16 * adapter,
        "qlora": 0.52 * base.parameters + 16 * adapter,
        "full": 16 * base.parameters,
    }[method]
    row_tokens, general = facts.prompt_tokens + facts.completion_tokens, _general_tokens(train)
    step = facts.system_tokens + train.batch_size * row_tokens + general
    tokens = max(min(train.max_tokens_per_batch, step), facts.row_tokens)
    activations = 34 * base.hidden * tuned_layers(base, train) * tokens * bytes_per_value / 2
    share = facts.completion_tokens / row_tokens if row_tokens else 0.0
    supervised = max(train.batch_size * facts.completion_tokens + general, train.max_tokens_per_batch * share)
    return (weights + activations + 12 * supervised * base.vocabulary) / MB + LIBRARIES_MB
