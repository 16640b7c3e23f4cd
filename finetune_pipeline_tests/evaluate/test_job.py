"""The evaluation's job with full weights: general ability is compared with the real base model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune_pipeline.evaluate import general_ability, job
from finetune_pipeline.inference.likelihood import losses
from finetune_pipeline.inference.loading import load
from finetune_pipeline.models.trained_weights import write_method
from finetune_pipeline.records import Silent


def test_general_ability_of_full_weights_is_compared_with_the_base_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(tiny_model, tmp_path / "full"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_method(folder, "full")
    monkeypatch.setattr(job, "fast_bf16", lambda: False)
    prompts = general_ability.prompts()[:6]
    monkeypatch.setattr(general_ability, "prompts", lambda: prompts)
    measured = job._general(load(tiny_model, folder), Silent())
    rows = general_ability.conversations(prompts)
    assert measured["base"] == pytest.approx(losses(load(tiny_model), rows), abs=1e-5)
    assert measured["tuned"] == pytest.approx(losses(load(folder), rows), abs=1e-5)
    assert all(abs(measured["tuned"][key] - measured["base"][key]) > 1e-4 for key in rows)
