"""Base models as they are on the Hub: with Python code that is not needed, with a part that reads images, and larger
than a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.base_weights import read_model, read_small_files
from finetune_pipeline.inference.decoder import Decoder, Request
from finetune_pipeline.inference.loading import load
from finetune_pipeline.models import device
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.model_files import check, dimensions, linear_names
from finetune_pipeline.models.trained_weights import Method
from finetune_pipeline.train.method import load_base, make_trainable
from finetune_pipeline_tests.train.architectures import WITH_IMAGES, tiny
from finetune_pipeline_tests.train.setup import RULES, Setup

PROMPT = list(range(3, 20))


def folder_of(family: str, tiny_model: Path, folder: Path) -> Path:
    """A folder with a tiny model of this family and the tokenizer of the tiny model."""
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    tiny(family, vocab_size=384).save_pretrained(folder)
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


# Python code in the folder --------------------------------------------------------------------------------------


@pytest.fixture
def phi(tiny_model: Path, tmp_path: Path) -> Path:
    """As Phi-3.5-mini-instruct is: its type is one of transformers, and the folder holds the code from before that. The
    code here leaves a file behind when it is executed."""
    folder = folder_of("phi3", tiny_model, tmp_path / "phi")
    for name in ("configuration_phi3", "modeling_phi3", "tokenization_phi3"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w').close()\n", "utf-8")
    classes = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    edit(folder / "config.json", auto_map=classes)
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_phi3.Phi3Tokenizer", None]})
    return folder


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_code_that_is_not_needed_is_not_executed(phi: Path, tmp_path: Path, method: Method) -> None:
    check(phi)
    trained = Setup(phi, RULES.model_copy(update={"method": method}))
    assert type(trained.model).__module__ == "transformers.models.phi3.modeling_phi3"
    assert trained.step(tmp_path)["loss"] > 0
    trained.trainable.save(tmp_path / "out", "phi", trained.base.tokenizer)
    load(phi, tmp_path / "out")
    Architecture.of_folder(phi)
    assert not (tmp_path / "executed").exists()


def test_a_model_with_code_and_other_weights_than_transformers_class_is_refused(phi: Path) -> None:
    """Its code computes something with them that the class does not."""
    from safetensors.numpy import load_file, save_file

    weights = load_file(phi / "model.safetensors")
    weights["model.layers.1.extra.weight"] = weights["model.norm.weight"]
    save_file(weights, phi / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors .* such as model\.layers\.1\.extra\.weight: it needs code"):
        load(phi)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_needs_its_code_is_refused(phi: Path, tmp_path: Path, name: str) -> None:
    if name == "config.json":
        edit(phi / name, model_type="own_model")
    else:
        (phi / "tokenizer.json").unlink()
    for reads in (check, read_small_files, load):
        with pytest.raises(ModelError, match=f"needs code of its own \\(auto_map in {name}\\)"):
            reads(phi)
    assert not (tmp_path / "executed").exists()


# models that read images ----------------------------------------------------------------------------------------


def named_newly(folder: Path) -> None:
    """The names that transformers 5 gives such a model in memory; some files have them."""
    from safetensors.numpy import load_file, save_file

    def new(name: str) -> str:
        if "lm_head" in name:
            return "lm_head.weight"
        text = name.replace("language_model.model.", "model.language_model.")
        return text if text != name else f"model.{name}"

    weights = {new(name): weight for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("names", ["old", "new"])
@pytest.mark.parametrize("family", WITH_IMAGES)
def test_the_text_part_answers_as_the_whole_model(family: str, names: str, tiny_model: Path, tmp_path: Path) -> None:
    """Evaluation and serving decode with the text part; the whole model reads the same text."""
    import torch

    folder = folder_of(family, tiny_model, tmp_path / "base")
    if names == "new":
        named_newly(folder)
    whole = tiny(family, vocab_size=384).eval()
    loaded = load(folder)
    assert not [name for name, _ in loaded.model.named_modules() if "vision" in name]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([PROMPT])).logits for model in (loaded.model, whole)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-5, atol=1e-6)
    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("a", PROMPT, 8)])
    tokens = []
    while decoder.running or decoder.waiting:
        tokens += [token.token for token in decoder.step()]
    generated = whole.generate(
        torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    assert tokens == generated[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_sizes_are_those_of_the_text_part(family: str, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    folder = folder_of(family, tiny_model, tmp_path / "base")
    loaded = read_model(folder, torch.float32, quantized=False)[0]
    counted = sum(weight.numel() for weight in loaded.parameters())
    assert dimensions(folder)["parameters"] == counted == Architecture.of_folder(folder).parameters
    described = json.loads((folder / "config.json").read_text("utf-8"))
    del described["text_config"]["vocab_size"]  # as in google/gemma-3-4b-it: what transformers has by default
    (folder / "config.json").write_text(json.dumps(described), "utf-8")
    assert (dimensions(folder)["layers"], dimensions(folder)["vocabulary"]) == (3, 384)
    named = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert linear_names(folder) == named


@pytest.mark.parametrize("family", WITH_IMAGES)
def test_full_weights_are_saved_as_a_model_of_text(family: str, tiny_model: Path, tmp_path: Path) -> None:
    """Any program that loads causal language models reads them."""
    import torch
    from transformers import AutoModelForCausalLM

    rules = Train(method="full", precision="fp32")
    base = load_base(folder_of(family, tiny_model, tmp_path / "base"), rules)
    make_trainable(base, rules).save(tmp_path / "out", family, base.tokenizer)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([PROMPT])).logits for model in (saved, base.model)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "gemma3n", "t5"])
def test_a_model_without_a_text_part_is_refused_before_its_weights_are_read(
    model_type: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}), "utf-8")
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    with pytest.raises(ModelError, match="no causal language model of text alone for the type") as found:
        load(folder)
    assert "Gemma 2 and 3" in found.value.hint


# where the weights are read to ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("on", "expected"), [(None, {"": "cuda"}), ("cuda", {"": "cuda"}), ("cpu", None)])
def test_weights_for_sharding_are_not_read_into_a_gpu(
    on: str | None, expected: Any, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sharded training loads on the CPU (`load_base(…, "cpu")`): a model that it spreads may be larger than a GPU."""
    import torch
    from transformers import AutoModelForCausalLM

    seen: list[Any] = []
    read = AutoModelForCausalLM.from_pretrained

    def recorded(*args: Any, device_map: Any = None, **settings: Any) -> Any:
        seen.append(device_map)
        return read(*args, **settings)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", recorded)
    monkeypatch.setattr(device, "kind", lambda: "cuda")
    read_model(tiny_model, torch.float32, quantized=False, on=on)
    if on == "cpu":
        load_base(tiny_model, Train(method="full", precision="fp32"), "cpu")
    assert seen == [expected] * len(seen)
