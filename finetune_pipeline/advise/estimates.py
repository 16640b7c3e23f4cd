"""What a training takes and costs, before it runs: rough (within a factor of two or so), and each formula has a source.

    work         full: 6 N D floating-point operations for N parameters and D tokens, 2 N D forward and 4 N D back
                 (Kaplan et al., "Scaling Laws for Neural Language Models", arXiv:2001.08361, section 2.1); LoRA saves
                 the frozen weights' gradients, a third of it: 4 N D, and 6 n D for its own n parameters
    adapter      n = 17.7 r h L for rank r on all linear layers of a Llama-like block of hidden size h (feed-forward
                 8/3 h, keys and values h/3): the count of Hu et al., arXiv:2106.09685, section 4.2, r (in + out) each
    memory       weights 2 or 4 bytes (QLoRA 0.52: Dettmers et al., arXiv:2305.14314, section 3); trained parameters
                 16 bytes (weight, gradient, Adam's two moments in 4 bytes each; Rajbhandari et al., arXiv:1910.02054,
                 section 3.1); activations 34 h bytes a token and layer in 16 bits (Korthikanti et al.,
                 arXiv:2205.05198, equation 1, without the attention matrix); logits 8 bytes a supervised token and
                 word of the vocabulary (value and gradient)
    time         work / (measured speed of this machine's matrix product x EFFICIENCY)

What it is not: a benchmark. The training measures its own tokens a second.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_pipeline.advise.facts import Facts
from finetune_pipeline.config import Suitability, Train

EFFICIENCY = 0.3  # share of the matrix product's speed that training reaches: measured with LoRA on a 135M model
DAYS_PER_MONTH = 365.25 / 12
ADAPTER_WIDTH = 17.7
MB = 1e6


@dataclass(frozen=True, slots=True)
class Base:
    """The base model's size, as base_model.json has it."""

    parameters: int
    hidden: int
    layers: int
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Machine:
    """`gflops`: speed of a float32 matrix product, in 10^9 operations a second; `free_mb`: memory at hand."""

    gflops: float
    free_mb: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """`memory_mb` by method (lora, qlora, full); seconds and cost of one training; costs a month of either way.

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
    adapter = adapter_parameters(base, train.rank)
    batches = facts.usable / train.batch_rows  # the system prompt is computed once for all rows of a batch
    own = facts.question_tokens + facts.answer_tokens
    tokens = train.epochs * (facts.usable * own + batches * facts.system_tokens)
    flops = 4 * base.parameters * tokens + 6 * adapter * tokens
    seconds = flops / (machine.gflops * 1e9 * EFFICIENCY)
    cost = seconds / 3600 * declared.training_per_hour
    request = (facts.few_shot_prompt + facts.answer_tokens) / 1e6 * declared.prompted_price
    prompted = declared.requests_per_day * DAYS_PER_MONTH * request
    saved = prompted - declared.hosting_per_month
    return Estimate(
        adapter_parameters=adapter,
        training_tokens=tokens,
        training_flops=flops,
        training_seconds=seconds,
        memory_mb={method: memory_mb(method, facts, base, train) for method in ("lora", "qlora", "full")},
        training_cost=cost,
        prompted_per_month=prompted,
        tuned_per_month=declared.hosting_per_month,
        break_even_months=cost / saved if saved > 0 else None,
        break_even_requests=declared.hosting_per_month / DAYS_PER_MONTH / request if request > 0 else None,
    )


def adapter_parameters(base: Base, rank: int) -> int:
    """Trained parameters of a LoRA adapter on all linear layers."""
    return round(ADAPTER_WIDTH * rank * base.hidden * base.layers)


def memory_mb(method: str, facts: Facts, base: Base, train: Train) -> float:
    """Peak memory of a training in MB, without the 0.5 to 1 GB that the libraries take."""
    width = 4 if train.precision == "fp32" else 2
    adapter = adapter_parameters(base, train.rank)
    weights = {
        "lora": width * base.parameters + 16 * adapter,
        "qlora": 0.52 * base.parameters + 16 * adapter,
        "full": 16 * base.parameters,
    }[method]
    tokens = max(train.max_tokens_per_batch, facts.row_tokens)
    activations = 34 * base.hidden * base.layers * tokens * width / 2
    supervised = tokens * facts.answer_tokens / facts.row_tokens if facts.row_tokens else 0.0
    return (weights + activations + 8 * supervised * base.vocabulary) / MB
