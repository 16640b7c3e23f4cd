"""The packed loss is checked against the model's own: right for Llama, refused where it would be silently wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.train import job
from finetune_pipeline.train.encode import Encoded
from finetune_pipeline.train.packed import PackedModel
from finetune_pipeline.train.yardstick import check

ROWS = [Encoded("a", [1, 5, 6, 7, 8], [9, 10, 2], True), Encoded("b", [1, 5, 6, 11], [12, 2], True)]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_llama_passes(tiny_model: Path, frozen: int) -> None:
    model, _, _ = job.load(tiny_model, Train(precision="fp32"))
    check(model, PackedModel(model, [1, 5], frozen), ROWS, bf16=False)


@pytest.mark.parametrize("frozen", [0, 1])
def test_scaled_logits_are_refused(frozen: int) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    model = _wild(GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0, embedding_multiplier=3.0)))
    with pytest.raises(ModelError, match="GraniteForCausalLM computes its loss in another way"):
        check(model, PackedModel(model, [1, 5], frozen), ROWS, bf16=False)


def test_soft_caps_and_windows_are_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    model = _wild(Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=4)))
    with pytest.raises(ModelError, match="Gemma2ForCausalLM"):
        check(model, PackedModel(model, [1, 5], 0), ROWS, bf16=False)


def _wild(model: Any) -> Any:
    """Weights large enough that caps and scales show."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.5)
    return model.eval()
