"""The RMSNorm of a training against the model's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from finetune_pipeline.train.fused_norm import use_fused_norms


def norm(kind: Any, dtype: torch.dtype) -> Any:
    module = kind(24)
    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return module.to(dtype)


def output_and_gradients(module: Any, dtype: torch.dtype, weight: bool) -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    states = torch.randn(2, 7, 24, generator=generator).to(dtype).requires_grad_()
    module.weight.requires_grad_(weight)
    module.weight.grad = None
    out = module(states)
    out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
    return [out.detach(), states.grad, *([module.weight.grad] if weight else [])]


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Olmo2RMSNorm])
@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize(
    ("of_weight", "of_states", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-6),
        (torch.bfloat16, torch.bfloat16, 1e-2),
        (torch.float32, torch.bfloat16, 1e-2),
        (torch.bfloat16, torch.float32, 1e-2),
    ],
)
def test_output_and_gradients_equal_those_of_the_model(
    kind: Any, weight: bool, of_weight: torch.dtype, of_states: torch.dtype, tolerance: float
) -> None:
    module = norm(kind, of_weight)
    expected = output_and_gradients(module, of_states, weight)
    use_fused_norms(torch.nn.Sequential(module))
    assert "forward" in vars(module)
    for ours, own in zip(output_and_gradients(module, of_states, weight), expected, strict=True):
        if kind is LlamaRMSNorm:
            assert ours.dtype == own.dtype
        assert float((ours.float() - own.float()).norm() / own.float().norm()) < tolerance


def test_another_formula_keeps_its_own_function() -> None:
    module = norm(Gemma2RMSNorm, torch.float32)
    use_fused_norms(torch.nn.Sequential(module))
    assert "forward" not in vars(module)
