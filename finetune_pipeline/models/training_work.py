"""The useful floating-point operations of a training, from the sizes of a model and of its batches. Pure.

    step_flops(architecture, Train(), [forward.load(part) for part in parts])      # of one optimizer step
    training_work(architecture, Train(), loads).total                              # of a training

A product with N weights takes 2 N operations for a token, and 2 N more for the gradient of its input; 2 N more for the
gradient of the weights where they are trained (Kaplan et al., arXiv:2001.08361, section 2.1: 6 N for full training).
Attention takes 4 q operations for a pair of tokens (q: values of a query over all heads), twice that backward. Only
what a training needs is counted: no padding, and nothing that gradient checkpointing or chunked logits compute again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture, Layer
from finetune_pipeline.models.training_load import Load, TrainingLoads

# Share of a matrix product's speed that a training reaches, before it was measured: 0.43 on a CPU (135M, bf16,
# validation included); GPUs of the table: 0.35, within the 0.3 to 0.5 that is reported for tuned training codes
# (Chowdhery et al., PaLM, arXiv:2204.02311, table 3: 0.21 to 0.46)
UTILIZATION = {"cpu": 0.43, "cuda": 0.35}


@dataclass(frozen=True)
class Work(JobData):
    """Floating-point operations of a training. `steps`: of all optimizer steps; `recomputed`: what gradient
    checkpointing adds to them; `passes`: of forward passes alone (validations, the model before training)."""

    steps: float
    recomputed: float
    passes: float

    def seconds(self, speed: float, checkpointing: bool = False) -> float:
        """At `speed` operations per second."""
        return (self.steps + (self.recomputed if checkpointing else 0.0) + self.passes) / speed


def training_work(architecture: Architecture, rules: Train, loads: TrainingLoads) -> Work:
    """The work of a whole training."""
    passes = Load.sum([loads.validation, loads.base])
    return Work(
        steps=step_flops(architecture, rules, [loads.steps], loads.frozen),
        recomputed=sum(_layer_flops(architecture, layer, loads.steps) for layer in architecture.tuned(rules)),
        passes=forward_flops(architecture, rules, passes),
    )


def step_flops(architecture: Architecture, rules: Train, loads: Iterable[Load], frozen: Load | None = None) -> float:
    """Of the forward and backward passes of a step, whose useful `loads` are given. `frozen`: what passed the layers
    below the trained ones in this step: less than the batch, because their output is kept (train/packing.py); None:
    the whole batch."""
    load = Load.sum(loads)
    tuned = architecture.tuned(rules)
    below = architecture.layers[: len(architecture.layers) - len(tuned)]
    frozen = load if frozen is None else frozen
    forward = sum(_layer_flops(architecture, layer, load) for layer in tuned)
    backward = forward + sum(_attention(architecture, layer, load) for layer in tuned)
    full, adapter = rules.method == "full", architecture.adapter_parameters(rules)
    backward += 2 * load.tokens * sum(layer.active for layer in tuned) if full else 0.0
    adapters = 0.0 if full else 6 * load.tokens * adapter * _active_share(architecture, rules)
    return (
        forward
        + backward
        + adapters
        + sum(_layer_flops(architecture, x, frozen) for x in below)
        + _head(architecture, rules, load)
    )


def forward_flops(architecture: Architecture, rules: Train, load: Load) -> float:
    """Of forward passes alone, with the logits of the learned tokens: a validation, or the reference of dpo."""
    adapter = 0 if rules.method == "full" else architecture.adapter_parameters(rules)
    layers = sum(_layer_flops(architecture, layer, load) for layer in architecture.layers)
    head = 2.0 * load.learned * architecture.vocabulary * architecture.hidden
    return layers + 2 * load.tokens * adapter * _active_share(architecture, rules) + head


def _layer_flops(architecture: Architecture, layer: Layer, load: Load) -> float:
    return 2 * load.tokens * layer.active + _attention(architecture, layer, load)


def _attention(architecture: Architecture, layer: Layer, load: Load) -> float:
    pairs = load.pairs if layer.window is None else min(load.pairs, load.tokens * layer.window)
    return 4 * pairs * architecture.queries


def _head(architecture: Architecture, rules: Train, load: Load) -> float:
    """Of the output layer; the general texts also need the logits of the base model."""
    trained = rules.method == "full" and rules.layers is None
    size = architecture.vocabulary * architecture.hidden
    return size * ((6 if trained else 4) * load.learned + 2 * load.general)


def _active_share(architecture: Architecture, rules: Train) -> float:
    """The share of the adapters' parameters that compute a token: less than 1 with experts."""
    sizes = [(matrix.inputs + matrix.outputs, matrix) for matrix in architecture.adapted(rules)]
    every = sum(size * matrix.count for size, matrix in sizes)
    return sum(size * matrix.active for size, matrix in sizes) / every if every else 1.0
