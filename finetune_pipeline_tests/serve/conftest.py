"""Adapters and full weights for the tiny model, large enough that each changes the answers; an endpoint for tasks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from finetune_pipeline.models.trained_weights import Method, write_method
from finetune_pipeline.serve import supervisor
from finetune_pipeline_tests.serve.deployment import KEY, Deployment, MakeAdapter, running

MakeWeights = Callable[[Method], Path]


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


@pytest.fixture(scope="session")
def make_weights(tiny_model: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory) -> MakeWeights:
    """`make_weights(method)` returns the folder of an adapter artifact as a training by this method leaves it."""
    folders: dict[Method, Path] = {}

    def make(method: Method) -> Path:
        if method not in folders:
            folder = tmp_path_factory.mktemp(method)
            source = tiny_model if method == "full" else make_adapter(5)
            shutil.copytree(source, folder, dirs_exist_ok=True)
            if method == "full":
                _change_weights(folder)
            write_method(folder, method)
            folders[method] = folder
        return folders[method]

    return make


def _change_weights(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * weight.std().nan_to_num(0.0) * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def deployment(
    tiny_model: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    root = tmp_path_factory.mktemp("deployment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_DATA", str(root / "data"))
        patch.setenv("FINETUNE_HOME", str(root / "home"))
        patch.setenv("FINETUNE_API_KEYS", f"tests:{KEY}")
        (root / "data").mkdir()
        patch.setattr(supervisor, "POLL_SECONDS", 0.1)
        with running() as server:
            patch.setenv("FINETUNE_ENDPOINT_URL", server.url)
            yield Deployment(server, root, tiny_model, make_adapter)
