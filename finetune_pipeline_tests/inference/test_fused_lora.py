"""Fused LoRA layers equal peft's in outputs and gradients, and leave everything but plain LoRA to peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from finetune_pipeline.inference.fused_lora import use_fused_lora

IDS = torch.tensor([[1, 30, 31, 32, 33, 2], [1, 40, 41, 42, 43, 2]])


def adapted(folder: Path, **more: Any) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "down_proj"], **more)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.2)
    return model


def loss_and_gradients(model: Any, precision: torch.dtype | None = None) -> tuple[Any, dict[str, Any]]:
    with torch.autocast("cpu", precision, enabled=precision is not None):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.detach(), {n: w.grad for n, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_loss_and_gradients_equal_those_of_peft(tiny_model: Path, precision: torch.dtype | None) -> None:
    expected, gradients = loss_and_gradients(adapted(tiny_model), precision)
    model = adapted(tiny_model)
    use_fused_lora(model)
    loss, ours = loss_and_gradients(model, precision)
    tolerance = 2e-5 if precision is None else 3e-2
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    assert set(ours) == set(gradients)
    assert all("lora_" in name for name in ours)
    largest = max(float(g.abs().max()) for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, rtol=tolerance, atol=tolerance * largest)


def test_logits_without_gradients_equal_those_of_peft(tiny_model: Path) -> None:
    model, own = adapted(tiny_model).eval(), adapted(tiny_model).eval()
    use_fused_lora(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(input_ids=IDS).logits, own(input_ids=IDS).logits, rtol=2e-5, atol=2e-5)


def test_a_disabled_adapter_gives_the_logits_of_the_base(tiny_model: Path) -> None:
    model = adapted(tiny_model).eval()
    use_fused_lora(model)
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    with torch.no_grad():
        with model.disable_adapter():
            torch.testing.assert_close(model(input_ids=IDS).logits, base(input_ids=IDS).logits)
        assert not torch.allclose(model(input_ids=IDS).logits, base(input_ids=IDS).logits)


@pytest.mark.parametrize("more", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_dropout_and_dora_are_computed_by_peft(tiny_model: Path, more: dict[str, Any]) -> None:
    model, own = adapted(tiny_model, **more), adapted(tiny_model, **more)
    use_fused_lora(model)
    torch.manual_seed(5)
    expected, _ = loss_and_gradients(own)
    torch.manual_seed(5)
    loss, _ = loss_and_gradients(model)
    torch.testing.assert_close(loss, expected)
