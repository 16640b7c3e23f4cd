"""Gradient checkpointing changes memory and time, and nothing else: losses and gradients are those without it."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.train.checkpointing import checkpointed
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.forward_check import difference
from finetune_pipeline.train.method import Base, Trainable, make_trainable
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline_tests.train.architectures import FAMILIES, tiny
from finetune_pipeline_tests.train.setup import kept_bytes
from finetune_pipeline_tests.train.test_forward_check import PREFIX, ROWS


def trained(family: str, method: str = "lora", layers: int | None = None, dropout: float = 0.0) -> Trainable:
    import torch

    rules = Train(method=method, lora=Lora(r=2, dropout=dropout), layers=layers)
    made = make_trainable(Base(tiny(family), None, frozenset({2}), torch.float32), rules)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in made.weights.items():
            if "lora_B" in name:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return made


def forward_of(kind: str, model: Any) -> Forward:
    return PackedForward(model, PREFIX) if kind == "packed" else PaddedForward(model)


def losses_and_gradients(made: Trainable, kind: str, checkpointing: bool) -> tuple[Any, list[Any]]:
    import torch

    forward = forward_of(kind, made.model)
    forward.checkpointing = checkpointing
    torch.manual_seed(3)  # dropout
    losses = forward.losses(ROWS)
    return losses.detach(), list(torch.autograd.grad(losses.sum(), [*made.weights.values()], allow_unused=True))


def kept(made: Trainable, kind: str, checkpointing: bool) -> int:
    forward = forward_of(kind, made.model)
    forward.checkpointing = checkpointing
    return kept_bytes(forward, ROWS)


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_without_checkpointing(family: str, kind: str) -> None:
    import torch

    experts = any(name in family for name in ("moe", "mixtral", "gpt_oss"))  # peft has no dropout there
    made = trained(family, dropout=0.0 if experts else 0.3)
    plain, gradients = losses_and_gradients(made, kind, False)
    again, others = losses_and_gradients(made, kind, True)
    assert torch.equal(plain, again)
    for name, own, other in zip(made.weights, gradients, others, strict=True):
        assert own is None if other is None else torch.equal(own, other), name


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize(("method", "layers"), [("lora", None), ("full", None), ("lora", 1), ("full", 1)])
def test_a_layer_keeps_its_input_alone(kind: str, method: str, layers: int | None) -> None:
    made = trained("llama", method, layers)
    assert kept(made, kind, True) < 0.5 * kept(made, kind, False)


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_the_comparison_before_the_first_step_passes(kind: str) -> None:
    made = trained("llama", layers=2)

    def make() -> Forward:
        forward = forward_of(kind, made.model)
        forward.checkpointing = True
        return forward

    assert difference(made.model, made.weights, make, ROWS) == ""


def test_only_the_trained_layers_are_computed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained("llama", layers=1)
    calls: list[int] = []
    for index, layer in enumerate(made.model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, index=index: calls.append(index))
    losses_and_gradients(made, "padded", True)
    assert calls == [0, 1, 2, 2]


def test_the_model_is_as_before_afterwards() -> None:
    made = trained("llama", dropout=0.5)
    before = {name: part.training for name, part in made.model.named_modules()}
    losses_and_gradients(made, "packed", True)
    assert {name: part.training for name, part in made.model.named_modules()} == before
    assert not any(layer.gradient_checkpointing for layer in made.model.model.layers)


def test_a_layer_that_cannot_be_checkpointed_is_refused() -> None:
    import torch

    with (
        pytest.raises(ModelError, match="not possible for Linear"),
        checkpointed([torch.nn.Linear(2, 2)], lambda: torch.enable_grad()),
    ):
        pass
