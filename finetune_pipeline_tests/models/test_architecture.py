"""Sizes come from the modules of each family, and equal those of the loaded model and of peft's adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.config import Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.train.method import Base, make_trainable
from finetune_pipeline_tests.train.architectures import FAMILIES, tiny

EXPERTS = [family for family in FAMILIES if any(name in family for name in ("moe", "mixtral", "gpt_oss"))]


def trained(family: str, rules: Train) -> int:
    import torch

    made = make_trainable(Base(tiny(family), None, frozenset({2}), torch.float32), rules)
    return sum(weight.numel() for weight in made.weights.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_counted_once(family: str) -> None:
    model = tiny(family)
    architecture = Architecture.of_model(model)
    assert architecture.parameters == sum(weight.numel() for weight in model.parameters())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert (architecture.head == 0) is tied


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trained_parameters_are_those_of_the_training(family: str) -> None:
    """Fused projections, experts, the upper layers alone."""
    architecture = Architecture.of_model(tiny(family))
    for declared in ({}, {"layers": 1}, {"method": "full"}, {"method": "full", "layers": 2}):
        rules = Train.model_validate(declared)
        assert architecture.trained_parameters(rules) == trained(family, rules), declared
    if family not in EXPERTS:  # peft has no DoRA for experts
        dora = Train.model_validate({"lora": {"use_dora": True, "r": 4}})
        assert architecture.trained_parameters(dora) == trained(family, dora)


def test_named_target_modules_are_counted_alone() -> None:
    rules = Train.model_validate({"lora": {"target_modules": ["q_proj", "v_proj"]}})
    assert Architecture.of_model(tiny("llama")).adapter_parameters(rules) == trained("llama", rules)


@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", [None, None, None]),
        ("mistral_window", [4, 4, 4]),
        ("cohere2", [4, 4, None]),
        ("qwen2_window", [None, 4, 4]),
    ],
)
def test_windows_are_those_of_each_layer(family: str, windows: list[int | None]) -> None:
    assert [layer.window for layer in Architecture.of_model(tiny(family)).layers] == windows


def test_a_folder_is_read_without_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text("utf-8"), "utf-8")
    architecture = Architecture.of_folder(tmp_path)
    assert (architecture.hidden, architecture.vocabulary, len(architecture.layers)) == (64, 384, 2)
    assert Architecture.from_json(architecture.to_json()) == architecture
