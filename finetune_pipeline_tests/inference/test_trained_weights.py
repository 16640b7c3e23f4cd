"""Trained weights (adapter, adapter on 4 bits, full) load as they were trained; damaged ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.errors import FinetuneError, ModelError, StorageError
from finetune_pipeline.inference.adapters import Adapters
from finetune_pipeline.inference.base_weights import read_model
from finetune_pipeline.inference.decoder import Decoder, Request
from finetune_pipeline.inference.loading import Loaded, base_only, load, load_base
from finetune_pipeline.models.trained_weights import method_of, weight_files, write_method

PROMPT = list(range(20, 60))


def logits_of(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0]


def tokens_of(loaded: Loaded) -> list[int]:
    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("a", PROMPT, 8)])
    tokens = []
    while decoder.running or decoder.waiting:
        tokens += [token.token for token in decoder.step()]
    return tokens


def train_adapter(model: Any, folder: Path) -> Any:
    """An adapter with random weights on `model`, saved as the training saves it; returns the model with it."""
    import torch
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(1)
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            weight.data = 0.3 * torch.randn(weight.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def plain(tiny_model: Path, **settings: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, **settings)


def in_4_bits(tiny_model: Path) -> Any:
    import torch

    return read_model(tiny_model, torch.float32, quantized=True)[0]


@pytest.fixture
def full(tiny_model: Path, tmp_path: Path) -> Path:
    """The artifact of full weights: another model than the base, with its tokenizer."""
    import torch

    folder = tmp_path / "full"
    shutil.copytree(tiny_model, folder)
    model = plain(tiny_model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    model.save_pretrained(folder)
    write_method(folder, "full")
    return folder


def test_an_adapter_is_loaded_on_the_base_in_4_bits_that_it_was_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    pytest.importorskip("bitsandbytes")
    trained = train_adapter(in_4_bits(tiny_model), tmp_path / "adapter")
    write_method(tmp_path / "adapter", "qlora")
    loaded = load(tiny_model, tmp_path / "adapter")
    torch.testing.assert_close(logits_of(loaded.model), logits_of(trained), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(logits_of(loaded.model), logits_of(load(tiny_model).model), atol=1e-2)
    (tmp_path / "adapter" / "weights.json").unlink()  # the same adapter on the base in full precision is another model
    assert not torch.allclose(logits_of(load(tiny_model, tmp_path / "adapter").model), logits_of(trained), atol=1e-2)


def test_4_bit_weights_are_the_same_in_every_precision(tiny_model: Path) -> None:
    """An adapter that was trained in bf16 is evaluated in fp32 on the same base."""
    import torch

    pytest.importorskip("bitsandbytes")
    exact, fast = (read_model(tiny_model, dtype, quantized=True)[0] for dtype in (torch.float32, torch.bfloat16))
    kinds = {weight.dtype for weight in exact.parameters()}, {weight.dtype for weight in fast.parameters()}
    assert kinds == ({torch.uint8, torch.float32}, {torch.uint8, torch.bfloat16})
    for mine, other in zip(exact.parameters(), fast.parameters(), strict=True):
        assert torch.equal(mine.to(other.dtype), other)
        if mine.dtype == torch.uint8:
            assert torch.equal(mine.quant_state.absmax, other.quant_state.absmax)


def test_the_base_of_an_adapter_in_4_bits_is_the_base_in_4_bits(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    pytest.importorskip("bitsandbytes")
    quantized = load_base(tiny_model, quantized=True)
    expected, original = logits_of(quantized.model), logits_of(load(tiny_model).model)
    assert not torch.equal(expected, original)
    train_adapter(in_4_bits(tiny_model), tmp_path)
    write_method(tmp_path, "qlora")
    with base_only(load(tiny_model, tmp_path)) as base:
        torch.testing.assert_close(logits_of(base.model), expected)
    adapters = Adapters(quantized.model)  # as the endpoint does
    adapters.load("a", tmp_path)
    adapters.activate("a")
    torch.testing.assert_close(logits_of(quantized.model), logits_of(load(tiny_model, tmp_path).model))
    adapters.unload("a")
    torch.testing.assert_close(logits_of(quantized.model), expected)


def test_full_weights_replace_the_base_and_their_base_is_the_real_one(tiny_model: Path, full: Path) -> None:
    import torch

    loaded, original = load(tiny_model, full), load(tiny_model)
    assert not torch.allclose(logits_of(loaded.model), logits_of(original.model), atol=1e-2)
    torch.testing.assert_close(logits_of(loaded.model), logits_of(plain(full)))
    tuned = tokens_of(loaded)
    with base_only(loaded) as base:
        assert tokens_of(base) == tokens_of(original) != tuned
    assert tokens_of(loaded) == tuned


def test_weights_in_bf16_are_computed_in_bf16(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    train_adapter(plain(tiny_model), tmp_path)
    exact, fast = load(tiny_model, tmp_path), load(tiny_model, tmp_path, "bf16")
    assert {weight.dtype for weight in fast.model.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in exact.model.parameters()} == {torch.float32}
    assert (fast.dtype_name, exact.dtype_name) == ("bf16", "fp32")
    ours, theirs = logits_of(fast.model).float(), logits_of(exact.model)
    assert 0 < (ours - theirs).abs().mean() < 0.1 * theirs.abs().mean()
    assert len(tokens_of(fast)) == 8


def test_the_method_of_an_artifact(tmp_path: Path) -> None:
    assert method_of(tmp_path) == "lora"
    for text in ("{", '{"method": "prefix"}', '{"kind": "full"}', "[]"):
        (tmp_path / "weights.json").write_text(text, "utf-8")
        with pytest.raises(StorageError, match=r"weights\.json") as refused:
            method_of(tmp_path)
        assert "finetune run" in refused.value.hint
    names = ["model-00002.safetensors", "model-00001.safetensors", "config.json", "adapter_model.safetensors"]
    assert weight_files("qlora", names) == ["adapter_model.safetensors"]
    assert weight_files("full", names[:3]) == ["model-00001.safetensors", "model-00002.safetensors"]


def edit(name: str, **fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | fields), "utf-8")

    return apply


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return apply


def change_weight(name: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / name)
        change(weights)
        save_file(weights, folder / name, metadata={"format": "pt"})

    return apply


def add_nan(weights: dict[str, Any]) -> None:
    weights[sorted(weights)[-1]].view(-1)[3] = float("nan")


def add_infinity(weights: dict[str, Any]) -> None:
    weights[sorted(weights)[0]].view(-1)[3] = float("inf")


def drop(weights: dict[str, Any]) -> None:
    del weights["model.layers.0.mlp.up_proj.weight"]


def pickled(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).rename(folder / name.replace("safetensors", "bin"))

    return apply


DAMAGE = [
    (edit("config.json", auto_map={"AutoModel": "x.Y"}, model_type="own"), "code of its own"),
    (pickled("model.safetensors"), r"only model\.bin: pickle"),
    (cut("model.safetensors"), "model"),
    (change_weight("model.safetensors", add_nan), "not finite"),
    (change_weight("model.safetensors", add_infinity), "not finite"),
    (change_weight("model.safetensors", drop), r"lack 1 tensors .*up_proj"),
    (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
    (edit("config.json", model_type="unknown_model"), "unknown_model"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_base_model_is_refused(
    damage: Callable[[Path], None], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    damage(folder)
    with pytest.raises(ModelError, match=message) as refused:
        load(folder)
    assert refused.value.hint


def test_not_finite_weights_are_found_in_4_bits(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))

    def spoil(weights: dict[str, Any]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"].view(-1)[5] = float("nan")

    change_weight("model.safetensors", spoil)(folder)
    with pytest.raises(ModelError, match=r"not finite, in model\.layers\.1\.mlp\.up_proj"):
        load_base(folder, quantized=True)


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_full_weights_are_refused(
    damage: Callable[[Path], None], message: str, tiny_model: Path, full: Path
) -> None:
    damage(full)
    with pytest.raises(StorageError, match=message) as refused:
        load(tiny_model, full)
    assert "finetune run" in refused.value.hint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (pickled("adapter_model.safetensors"), r"only adapter_model\.bin: pickle"),
        (cut("adapter_model.safetensors"), "is damaged"),
        (cut("adapter_config.json"), "adapter"),
        (change_weight("adapter_model.safetensors", add_nan), "not finite"),
    ],
)
def test_a_damaged_adapter_is_refused(
    damage: Callable[[Path], None], message: str, tiny_model: Path, tmp_path: Path
) -> None:
    train_adapter(plain(tiny_model), tmp_path)
    damage(tmp_path)
    for loads in (lambda: load(tiny_model, tmp_path), lambda: Adapters(load(tiny_model).model).load("a", tmp_path)):
        with pytest.raises(StorageError, match=message) as refused:
            loads()
        assert refused.value.hint


def test_an_adapter_for_another_base_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from finetune_pipeline_tests.train.architectures import tiny

    train_adapter(tiny("qwen3"), tmp_path)
    with pytest.raises(StorageError, match="does not fit this base model"):
        load(tiny_model, tmp_path)


def test_a_base_without_pad_token_answers(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del settings["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    edit("config.json", pad_token_id=None)(folder)
    assert load(folder).tokenizer.pad_token is None
    assert tokens_of(load(folder)) == tokens_of(load(tiny_model))


def test_a_device_without_room_is_an_error_with_a_hint(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    def large(*_: Any, **__: Any) -> Any:
        return torch.empty(1 << 50)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", large)
    with pytest.raises(FinetuneError, match="does not fit into the memory") as refused:
        load(tiny_model)
    assert "qlora" in refused.value.hint
