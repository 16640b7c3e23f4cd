"""On a GPU: the same answers as on the CPU in fp32, bf16 by default, 4 bits, and the memory of one model at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_pipeline.evaluate import general_ability
from finetune_pipeline.inference.decoder import Decoder, Request
from finetune_pipeline.inference.likelihood import losses
from finetune_pipeline.inference.loading import Loaded, base_only, load
from finetune_pipeline.models import device
from finetune_pipeline.models.trained_weights import write_method
from finetune_pipeline_tests.inference.test_families import PREFIX, PROMPTS, model_of
from finetune_pipeline_tests.inference.test_trained_weights import train_adapter
from finetune_pipeline_tests.train.architectures import FAMILIES

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]


def answers(model: Any, prefix: list[int], chunk: int | None = None) -> dict[str, list[int]]:
    decoder = Decoder(model, {-1}, prefix, max_sequences=4, prefill_tokens=16, chunk_tokens=chunk)
    decoder.add_request([Request(str(i), prompt, 8, seed=i) for i, prompt in enumerate(PROMPTS)])
    found: dict[str, list[int]] = {}
    while decoder.running or decoder.waiting:
        for token in decoder.step():
            assert token.reason != "error", token.error
            found.setdefault(token.id, []).append(token.token)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_fp32_equal_those_of_the_cpu(family: str) -> None:
    on_cpu = answers(model_of(family), PREFIX)
    on_gpu = model_of(family).to("cuda")
    for chunk in (None, 3):
        assert answers(on_gpu, PREFIX, chunk) == answers(on_gpu, [], chunk) == on_cpu


def test_models_are_loaded_on_the_gpu_in_bf16(tiny_model: Path) -> None:
    loaded, exact = load(tiny_model), load(tiny_model, precision="fp32")
    for each, dtype in ((loaded, torch.bfloat16), (exact, torch.float32)):
        assert {(weight.device.type, weight.dtype) for weight in each.model.parameters()} == {("cuda", dtype)}
    rows = general_ability.conversations(general_ability.prompts()[:20])
    fast, slow = losses(loaded, rows), losses(exact, rows)
    assert sum(fast.values()) == pytest.approx(sum(slow.values()), rel=0.02)


def test_sampling_on_the_gpu_depends_on_the_seed_alone(tiny_model: Path) -> None:
    model = load(tiny_model, precision="fp32").model

    def sampled(*others: Request) -> list[int]:
        decoder = Decoder(model, {-1})
        decoder.add_request([*others, Request("a", PROMPTS[0], 8, temperature=1.0, top_p=0.9, seed=3)])
        tokens = []
        while decoder.running or decoder.waiting:
            tokens += [token.token for token in decoder.step() if token.id == "a"]
        return tokens

    assert sampled() == sampled(Request("b", PROMPTS[1], 8))


def test_an_adapter_on_4_bits_answers(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    train_adapter(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), tmp_path)
    write_method(tmp_path, "qlora")
    loaded = load(tiny_model, tmp_path)
    tuned = answers(loaded.model, PREFIX)
    with base_only(loaded) as base:
        assert answers(base.model, PREFIX) != tuned
    assert answers(loaded.model, PREFIX) == tuned


def test_full_weights_wait_outside_the_gpu_while_their_base_is_measured(tiny_model: Path) -> None:
    model = load(tiny_model).model
    full = Loaded(model, None, frozenset({2}), base=tiny_model)
    with base_only(full) as base:
        assert {weight.device.type for weight in model.parameters()} == {"cpu"}
        assert {weight.device.type for weight in base.model.parameters()} == {"cuda"}
    assert {weight.device.type for weight in model.parameters()} == {"cuda"}


def test_peak_memory_is_that_of_the_gpu() -> None:
    with device.PeakDeviceMemory() as peak:
        held = torch.empty(100_000_000, device="cuda")
        device.synchronize()
    assert held.nbytes / 1e6 <= peak.mb
    del held
    before = device.free_mb()
    device.release_memory()
    assert device.free_mb() >= 0.99 * before
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50, device="cuda")
    assert device.out_of_memory(refused.value)
