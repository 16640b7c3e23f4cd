"""The parts of the memory, against tensors that a forward pass really keeps, and against published figures of 7B."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import GpuName, Train
from finetune_pipeline.models.architecture import Architecture
from finetune_pipeline.models.gpus import GPUS
from finetune_pipeline.models.training_fit import Fit, fit, largest_tokens, verdict_of
from finetune_pipeline.models.training_load import Load
from finetune_pipeline.models.training_memory import Setting, training_memory
from finetune_pipeline.train.method import Base, make_trainable
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline.train.tokenize import Completion, TokenizedExample
from finetune_pipeline_tests.models.sizes import seven
from finetune_pipeline_tests.train.architectures import tiny
from finetune_pipeline_tests.train.setup import kept_bytes

PREFIX = [1, 5, 7, 8] * 10
ROWS = [
    TokenizedExample(f"row{n}", PREFIX + [6 + n] * (30 + n), (Completion([9] * 20 + [2]), Completion([10] * 9 + [2])))
    for n in range(8)
]
LOAD, LONGEST = Load(4096, 8000, 1.5e6, 1500), Load(700, 700, 245_000, 300)
GPU = Setting("cuda")


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("declared", [{}, {"method": "full"}, {"layers": 2}, {"lora": {"r": 4, "dropout": 0.1}}])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "qwen3", "olmo2"])
def test_activations_are_those_that_a_forward_pass_keeps(
    family: str, declared: dict[str, Any], bf16: bool, kind: str
) -> None:
    import torch

    rules = Train.model_validate({"lora": {"r": 4}, **declared})
    narrow = bf16 and rules.method != "full"
    model = tiny(family, "bfloat16" if narrow else "float32", hidden_size=128, intermediate_size=320)
    architecture = Architecture.of_model(model)
    make_trainable(Base(model, None, frozenset({2}), torch.float32), rules)
    forward = PackedForward(model, PREFIX) if kind == "packed" else PaddedForward(model)
    setting = Setting("cpu", bf16, kind)
    predicted = training_memory(architecture, rules, setting, forward.load(ROWS)).activations_mb
    assert predicted * 1e6 == pytest.approx(kept_bytes(forward, ROWS, bf16), rel=0.2)


def seven_on(gpu: GpuName, method: str, devices: int = 1, **declared: Any) -> Fit:
    rules = Train.model_validate({"method": method, **declared})
    return fit(seven(), rules, Setting("cuda", devices=devices), LOAD, LONGEST, GPUS[gpu].memory_mb)


@pytest.mark.parametrize(
    ("gpu", "method", "devices", "verdict"),
    [
        ("rtx4090", "qlora", 1, "FITS"),
        ("l4", "qlora", 1, "FITS"),
        ("h100", "lora", 1, "FITS"),
        ("a100-80", "full", 4, "FITS"),
        ("h100", "full", 1, "TOO BIG"),
        ("rtx4090", "full", 1, "TOO BIG"),
        ("rtx4090", "full", 4, "TOO BIG"),
    ],
)
def test_a_7b_fits_where_it_is_known_to_fit(gpu: GpuName, method: str, devices: int, verdict: str) -> None:
    assert seven_on(gpu, method, devices).verdict == verdict


@pytest.mark.parametrize(("method", "gigabytes"), [("qlora", (5, 12)), ("lora", (15, 20)), ("full", (100, 125))])
def test_a_7b_needs_about_what_is_published(method: str, gigabytes: tuple[int, int]) -> None:
    """LLaMA-Factory's table of hardware requirements says 6, 16 and 120 GB, of a short batch; with Adam in fp32, ZeRO's
    16 bytes per parameter alone are 108 GB."""
    low, high = gigabytes
    rules = Train.model_validate({"method": method})
    checkpointed = Setting("cuda", checkpointing=True)
    assert low < training_memory(seven(), rules, checkpointed, LONGEST).total_mb / 1e3 < high


def test_every_part_depends_on_what_it_should() -> None:
    seven_b = seven()

    def parts(setting: Setting = GPU, load: Load = LOAD, **declared: Any) -> dict[str, float]:
        return training_memory(seven_b, Train.model_validate(declared), setting, load).parts

    lora = parts()
    assert parts(method="qlora")["weights"] < 0.35 * lora["weights"]
    assert parts(Setting("cuda", bf16=False))["weights"] > 1.9 * lora["weights"]
    assert parts(Setting("cuda", checkpointing=True))["activations"] < 0.12 * lora["activations"]
    assert parts(load=LOAD.times(0.5))["activations"] == pytest.approx(lora["activations"] / 2)
    assert parts(layers=16)["activations"] == pytest.approx(lora["activations"] / 2, rel=0.1)
    assert parts(optimizer="adamw_8bit")["optimizer"] == lora["optimizer"] / 4
    assert parts(Setting("cuda", parts=2))["gradients"] > lora["gradients"] == 0
    whole, quarter = (parts(Setting("cuda", devices=n), method="full") for n in (1, 4))
    assert quarter["optimizer"] == whole["optimizer"] / 4
    spread = parts(Setting("cuda", devices=4))["weights"]
    assert lora["weights"] / 4 < spread < 0.5 * lora["weights"], "a quarter, and the layers that are gathered"
    assert sum(lora.values()) == training_memory(seven_b, Train(), GPU, LOAD).total_mb


def test_checkpointing_is_used_only_where_it_is_needed_and_declared() -> None:
    assert not seven_on("h100", "lora").checkpointing
    needed = seven_on("rtx4090", "lora")
    assert (needed.verdict, needed.checkpointing, needed.tokens) == ("FITS", True, LOAD.tokens)
    refused = seven_on("rtx4090", "lora", gradient_checkpointing=False)
    assert not refused.checkpointing and refused.tokens < LOAD.tokens, "then the micro-batch is smaller"
    assert seven_on("h100", "lora", gradient_checkpointing=True).checkpointing


def test_where_nothing_fits_the_least_is_named() -> None:
    most = seven_on("rtx4090", "full")
    assert most.checkpointing and most.memory.total_mb > GPUS["rtx4090"].memory_mb


@pytest.mark.parametrize(("need", "verdict"), [(85, "FITS"), (86, "TIGHT"), (100, "TIGHT"), (101, "TOO BIG")])
def test_a_verdict_leaves_room(need: float, verdict: str) -> None:
    assert verdict_of(need, 100) == verdict


def test_the_largest_micro_batch_fits_and_more_does_not() -> None:
    rules, setting, available = Train(), Setting("cuda", checkpointing=True), GPUS["rtx4090"].memory_mb
    tokens = largest_tokens(seven(), rules, setting, LOAD, LONGEST, available)
    assert tokens is not None and tokens % 64 == 0 and tokens > LOAD.tokens

    def need(count: float) -> float:
        return training_memory(seven(), rules, setting, LOAD.times(count / LOAD.tokens)).total_mb

    assert verdict_of(need(tokens), available) == "FITS"
    assert verdict_of(need(tokens + 200), available) == "TIGHT"
    assert largest_tokens(seven(), Train(method="full"), setting, LOAD, LONGEST, available) is None
