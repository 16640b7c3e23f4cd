"""The files of an adapter are checked before they are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.errors import StorageError
from finetune_pipeline.inference.loading import load


def test_an_adapter_that_fits_only_in_part_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path)
    assert load(tiny_model, tmp_path).model is not None
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(StorageError, match="only in part"):
        load(tiny_model, tmp_path)
