"""What a training takes and costs, before it runs: rough (within a factor of two or so), and each formula has a source.

    work         full: 6 N D floating-point operations for N parameters and D tokens, 2 N D forward and 4 N D back
                 (Kaplan et al., "Scaling Laws for Neural Language Models", arXiv:2001.08361, section 2.1); LoRA saves
                 the frozen weights' gradients, a third of it: 4 N D, and 6 n D for its own n parameters. N counts the
                 tuned layers; those below them (`train.layers`) are computed once a row, 2 N D. The output layer is
                 computed for supervised tokens alone
    tokens       a step holds its rows' own tokens, the system prompt once, and `train.keep_general`'s texts, which the
                 base model computes as well
    adapter      n = 17.7 r h L for rank r on all linear layers of a Llama-like block of hidden size h (feed-forward
                 8/3 h, keys and values h/3): the count of Hu et al., arXiv:2106.09685, section 4.2, r (in + out) each
    memory       weights 2 or 4 bytes (QLoRA 0.52: Dettmers et al., arXiv:2305.14314, section 3); trained parameters
                 16 bytes (weight, gradient, Adam's two moments in 4 bytes each; Rajbhandari et al., arXiv:1910.02054,
                 section 3.1); activations 34 h bytes a token and layer in 16 bits (Korthikanti et al.,
                 arXiv:2205.05198, equation 1, without the attention matrix); logits 12 bytes a supervised token
                 and word of the vocabulary (value, its logarithm, gradient)
    time         work / (speed of a matrix product as training computes it, measured by probe.py, x EFFICIENCY)

What it is not: a benchmark. The training measures its own tokens a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import get_args

from finetune_pipeline.config import Suitability, Train
from finetune_pipeline.suitability.facts import Facts

EFFICIENCY = 0.43  # share of the matrix product's speed that training reaches, validation included (135M, bf16)
LIBRARIES_MB = 800  # torch and what comes with it
GENERAL_TOKENS = 60  # of a text that keeps general ability
DAYS_PER_MONTH = 365.25 / 12
ADAPTER_WIDTH = 17.7
MB = 1e6


# Known here and accepted by the declaration; a method that is added there is estimated from then on.
METHODS = tuple(
    method for method in ("lora", "qlora", "full") if method in get_args(Train.model_fields["method"].annotation)
)


@dataclass(frozen=True, slots=True)
class Base:
    """The base model's size, as base_model.json has it."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The device that trains (cpu or cuda), and the precision it trains in (bf16 or fp32). `gflops`: speed of a matrix
    product in that precision, in 10^9 operations a second; `free_mb`: memory at hand."""

    gflops: float
    free_mb: float
    device: str = "cpu"
    precision: str = "bf16"


@dataclass(frozen=True, slots=True)
class Estimate:
    """`memory_mb` by method, of those that the declaration accepts; seconds and cost of one training; costs a month of
    either way.

    `break_even_months` is None where prompting stays cheaper; `break_even_requests` is the load per day at which the
    running costs are equal (None: never, a price of 0).
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


def estimate(facts: Facts, base: Base, train: Train, declared: Suitability, machine: Machine) -> Estimate:
    """All of it, for the declared training on this machine at the declared prices."""
    tokens, flops = training_work(facts, base, train)
    seconds = flops / (machine.gflops * 1e9 * EFFICIENCY)
    cost = seconds / 3600 * declared.training_per_hour
    request = (facts.few_shot_prompt + facts.completion_tokens) / 1e6 * declared.prompted_price
    prompted = declared.requests_per_day * DAYS_PER_MONTH * request
    saved = prompted - declared.hosting_per_month
    return Estimate(
        adapter_parameters=adapter_parameters(base, train),
        training_tokens=tokens,
        training_flops=flops,
        training_seconds=seconds,
        memory_mb={method: memory_mb(method, facts, base, train, machine.precision) for method in METHODS},
        training_cost=cost,
        prompted_per_month=prompted,
        tuned_per_month=declared.hosting_per_month,
        break_even_months=cost / saved if saved > 0 else None,
        break_even_requests=declared.hosting_per_month / DAYS_PER_MONTH / request if request > 0 else None,
    )


def training_work(facts: Facts, base: Base, train: Train) -> tuple[float, float]:
    """Tokens that go through the tuned layers in a training, and its floating-point operations."""
    rows, own = facts.usable * facts.train_share, facts.prompt_tokens + facts.completion_tokens
    steps = ceil(rows / train.batch_size * train.num_epochs)
    general = _general_tokens(train) * steps
    supervised = train.num_epochs * rows * facts.completion_tokens
    tokens = train.num_epochs * rows * own + steps * facts.system_tokens + general
    tuned = tuned_layers(base, train)
    layer = (base.parameters - base.vocabulary * base.hidden) / base.layers
    head = base.vocabulary * base.hidden
    flops = (4 * tuned * layer + 6 * adapter_parameters(base, train)) * tokens
    flops += 2 * tuned * layer * general  # the base model's own distribution
    flops += head * (4 * supervised + 6 * general)
    flops += 2 * (base.layers - tuned) * layer * (rows * own + facts.system_tokens + general)
    return tokens, flops


def _general_tokens(train: Train) -> int:
    """Tokens of general texts in a step."""
    return GENERAL_TOKENS * train.keep_general.texts if train.keep_general.weight else 0


def tuned_layers(base: Base, train: Train) -> int:
    return min(train.layers or base.layers, base.layers)


def adapter_parameters(base: Base, train: Train) -> int:
    """Trained parameters of a LoRA adapter on all linear layers of the tuned layers."""
    return round(ADAPTER_WIDTH * train.lora.r * base.hidden * tuned_layers(base, train))


def memory_mb(method: str, facts: Facts, base: Base, train: Train, precision: str) -> float:
    """Peak memory of a training in MB: of a step, or of the validation, which fills `train.max_tokens_per_batch`."""
    width = 4 if precision == "fp32" else 2
    adapter = adapter_parameters(base, train)
    weights = {
        "lora": width * base.parameters + 16 * adapter,
        "qlora": 0.52 * base.parameters + 16 * adapter,
        "full": 16 * base.parameters,
    }[method]
    own, general = facts.prompt_tokens + facts.completion_tokens, _general_tokens(train)
    step = facts.system_tokens + train.batch_size * own + general
    tokens = max(min(train.max_tokens_per_batch, step), facts.row_tokens)
    activations = 34 * base.hidden * tuned_layers(base, train) * tokens * width / 2
    share = facts.completion_tokens / own if own else 0.0
    supervised = max(train.batch_size * facts.completion_tokens + general, train.max_tokens_per_batch * share)
    return (weights + activations + 12 * supervised * base.vocabulary) / MB + LIBRARIES_MB
