"""Adapters for the tiny model: random LoRA weights, large enough that each adapter changes the answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MakeAdapter = Callable[[int], Path]


@pytest.fixture(scope="session")
def make_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """`make_adapter(seed)` returns a folder in peft's format; seed 0 is an adapter without effect."""
    folders: dict[int, Path] = {}

    def make(seed: int) -> Path:
        if seed not in folders:
            folders[seed] = _adapter(tiny_model, tmp_path_factory.mktemp("adapter"), seed)
        return folders[seed]

    return make


def _adapter(base: Path, folder: Path, seed: int) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            scale = 0.0 if seed == 0 and "lora_B" in name else 0.5
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)
    return folder
