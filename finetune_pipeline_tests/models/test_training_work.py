"""Useful floating-point operations, against those that torch counts while it computes."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.training_load import Load
from finetune_pipeline.models.training_work import forward_flops, step_flops
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.method import Base, make_trainable
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline.train.tokenize import Completion, TokenizedExample
from finetune_pipeline_tests.train.architectures import tiny

PREFIX = [1, 5]
ROWS = [TokenizedExample(f"row{n}", [*PREFIX, 6, 7 + n], (Completion([9] * 4 + [2]),)) for n in range(40)]
SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 6}


def prepared(kind: str, **declared: Any) -> tuple[Architecture, Train, Forward]:
    import torch

    rules = Train.model_validate({"lora": {"r": 2}, "gradient_checkpointing": False, **declared})
    model = tiny("llama", **SIZES)
    architecture = Architecture.of_model(model)
    make_trainable(Base(model, None, frozenset({2}), torch.float32), rules)
    return architecture, rules, PackedForward(model, PREFIX) if kind == "packed" else PaddedForward(model)


def counted(forward: Forward, backward: bool = True) -> int:
    """By torch, which does not count attention's kernel of a processor: it is small in short rows."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        losses = forward.losses(ROWS)
        if backward:
            losses.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("declared", [{}, {"method": "full"}, {"layers": 2}, {"method": "full", "layers": 2}])
def test_a_step_takes_what_torch_counts(declared: dict[str, Any], kind: str) -> None:
    architecture, rules, forward = prepared(kind, **declared)
    flops = step_flops(architecture, rules, [forward.load(ROWS)])
    assert flops == pytest.approx(counted(forward), rel=0.08)


def test_a_forward_pass_takes_what_torch_counts() -> None:
    architecture, rules, forward = prepared("packed")
    assert forward_flops(architecture, rules, forward.load(ROWS)) == pytest.approx(counted(forward, False), rel=0.05)


def test_padding_and_recomputation_are_no_useful_work() -> None:
    architecture, rules, forward = prepared("padded")
    longer = [*ROWS, TokenizedExample("long", [*PREFIX, *range(6, 40)], (Completion([9, 2]),))]
    useful = step_flops(architecture, rules, [forward.load(longer, padding=False)])
    assert useful < 0.4 * step_flops(architecture, rules, [forward.load(longer)])
    forward.checkpointing = True
    assert step_flops(architecture, rules, [forward.load(ROWS)]) < 0.85 * counted(forward)


def test_micro_batches_add_up_and_cached_layers_are_not_counted_again() -> None:
    architecture, rules, forward = prepared("padded", layers=2)
    whole, halves = [forward.load(ROWS)], [forward.load(ROWS[:20]), forward.load(ROWS[20:])]
    assert step_flops(architecture, rules, halves) == pytest.approx(step_flops(architecture, rules, whole))
    nothing = Load(0, 0, 0, 0)
    assert step_flops(architecture, rules, whole, nothing) < 0.6 * step_flops(architecture, rules, whole)


def test_attention_grows_with_pairs_up_to_the_window() -> None:
    plain, window = (Architecture.of_model(tiny(name)) for name in ("mistral", "mistral_window"))
    few, many = Load(100, 100, 5_000, 10), Load(100, 100, 50_000, 10)
    more = step_flops(plain, Train(), [many]) - step_flops(plain, Train(), [few])
    assert more == pytest.approx(12 * 45_000 * plain.queries * len(plain.layers))
    assert step_flops(window, Train(), [many]) == step_flops(window, Train(), [few]), "4 tokens of 100 are 400 pairs"


def test_only_the_experts_of_a_token_count() -> None:
    dense, experts = (Architecture.of_model(tiny(name)) for name in ("mistral", "mixtral"))
    load = Load(1000, 1000, 0, 0)
    flops = step_flops(experts, Train(method="full", layers=3), [load])
    layer = experts.layers[0]
    active = sum(m.inputs * m.outputs * m.active for m in layer.matrices)
    assert flops == pytest.approx(6 * 1000 * active * 3)
    assert layer.parameters > 1.5 * active > dense.layers[0].active
