"""Which weights get an adapter: all large weights of the tuned layers, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.loading import attach
from finetune_pipeline.train import adapter
from finetune_pipeline.train.adapter import save_adapter, with_adapter
from finetune_pipeline.train.forward import frozen_layers, without_dropout
from finetune_pipeline.train.method import Base, make_trainable
from finetune_pipeline_tests.train.architectures import tiny

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
FUSED = {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
IDS = [1, 5, 6, 7, 8, 9, 10, 2]


def adapted_modules(model: Any) -> set[tuple[int, str]]:
    """(index of the layer, name of the module) of every adapter."""
    names = [name.split(".") for name, weight in model.named_parameters() if weight.requires_grad]
    return {(int(parts[2]), parts[4]) for parts in names}


@pytest.mark.parametrize(("family", "modules"), [("llama", LINEAR), ("qwen2", LINEAR), ("phi3", FUSED)])
@pytest.mark.parametrize("layers", [None, 1])
def test_every_linear_layer_of_the_tuned_layers_gets_an_adapter(
    family: str, modules: set[str], layers: int | None
) -> None:
    model = tiny(family)
    wrapped = with_adapter(model, Train(lora=Lora(r=2), layers=layers))
    indices = [2] if layers else [0, 1, 2]
    assert adapted_modules(model) == {(index, module) for index in indices for module in modules}
    assert set(wrapped.peft_config["default"].target_modules) == modules


@pytest.mark.parametrize("layers", [None, 1, 2])
def test_experts_below_the_tuned_layers_are_not_adapted(layers: int | None) -> None:
    model = tiny("qwen3_moe")
    with_adapter(model, Train(lora=Lora(r=2), layers=layers))
    assert {index for index, _ in adapted_modules(model)} == set(range(3 - (layers or 3), 3))
    assert {module for _, module in adapted_modules(model)} == {"q_proj", "k_proj", "v_proj", "o_proj", "experts"}
    assert frozen_layers(model) == 3 - (layers or 3)


def test_an_adapter_below_the_tuned_layers_is_an_error_that_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """peft creates one when experts are named without their layer."""
    real = adapter._targets
    monkeypatch.setattr(adapter, "_targets", lambda *args: (real(*args)[0], ["experts.down_proj"]))
    with pytest.raises(ModelError, match="Qwen3MoeForCausalLM: layer 0 has an adapter, but only layers from 2 on"):
        with_adapter(tiny("qwen3_moe"), Train(lora=Lora(r=2), layers=1))


def test_a_linear_layer_without_adapter_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = adapter._targets
    monkeypatch.setattr(adapter, "_targets", lambda *args: (real(*args)[0] | {"model.layers.1.other_proj"}, []))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: peft put no adapter on model\.layers\.1\.other_proj"):
        with_adapter(tiny("llama"), Train(lora=Lora(r=2)))


def test_weights_outside_linear_layers_are_an_error_that_names_them() -> None:
    import torch

    class CustomMLP(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(32, 32))

    model = tiny("llama")
    model.model.layers[1].mlp = CustomMLP()
    with pytest.raises(ModelError, match="LlamaForCausalLM: peft put no adapter on the weights of layer 1's `mlp`"):
        with_adapter(model, Train(lora=Lora(r=2)))


def test_dropout_on_experts_is_an_error_that_names_the_model() -> None:
    with pytest.raises(ModelError, match=r"Qwen3MoeForCausalLM cannot be adapted: .*dropout"):
        with_adapter(tiny("qwen3_moe"), Train(lora=Lora(r=2, dropout=0.1)))


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize("layers", [None, 1])
def test_a_saved_adapter_gives_the_same_logits_when_attached(family: str, layers: int | None, tmp_path: Path) -> None:
    import torch

    wrapped = with_adapter(tiny(family), Train(lora=Lora(r=2), layers=layers))
    with torch.no_grad():
        for weight in wrapped.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.1)
    save_adapter(wrapped, tmp_path, "some/base", {})
    ids = torch.tensor([IDS])
    attached = attach(tiny(family).eval(), tmp_path)
    with torch.no_grad():
        expected, base = wrapped.eval()(input_ids=ids).logits, tiny(family).eval()(input_ids=ids).logits
        torch.testing.assert_close(attached(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, base, atol=1e-3)


def test_dropout_drops_in_training_and_not_in_validation() -> None:
    import torch

    made = make_trainable(Base(tiny("llama"), None, frozenset({2}), None), Train(lora=Lora(r=2, dropout=0.5)))
    with torch.no_grad():
        for name, weight in made.weights.items():
            weight.add_(0.5 if "lora_B" in name else 0.0)
    ids = torch.tensor([[1, 5, 6, 7]])
    first, second = (made.model(input_ids=ids).logits for _ in range(2))
    assert not torch.allclose(first, second)
    with without_dropout(made.model):
        first, second = (made.model(input_ids=ids).logits for _ in range(2))
    assert torch.equal(first, second)
