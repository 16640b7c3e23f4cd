"""Every family with every method and objective: trained for two steps, saved, and loaded again with the same logits."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.inference.loading import load
from finetune_pipeline.records import SILENT
from finetune_pipeline.train import checkpoint, forward_check
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.method import load_base, make_trainable
from finetune_pipeline.train.objective import OBJECTIVES, objective_of, usable
from finetune_pipeline.train.optimizer import optimizer_for
from finetune_pipeline.train.reference import Reference
from finetune_pipeline.train.replay import Replay
from finetune_pipeline.train.tokenize import Completion, TokenizedExample
from finetune_pipeline_tests.train.architectures import FAMILIES, WITH_IMAGES, tiny

PREFIX = [1, 5]
ROWS = [
    TokenizedExample(
        f"row{n}",
        [*PREFIX, *range(6, 9 + n)],
        (Completion([20 + n, 21, 2]), Completion([30, 31 + n, 32, 2])),
    )
    for n in range(4)
]
TEXTS = [TokenizedExample(f"text{n}", [40], (Completion([41, 42 + n, 43, 2]),)) for n in range(3)]
METHODS = ("lora", "qlora", "full")


@pytest.fixture(scope="module")
def bases(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a model of each family (wide enough for blocks of 64 weights in 4 bits), and a tokenizer."""
    import shutil

    folders = {}
    for family in (*FAMILIES, *WITH_IMAGES):
        folder = tmp_path_factory.mktemp(family)
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        (folder / "model.safetensors").unlink()
        sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64}
        special = (FAMILIES | WITH_IMAGES)[family][2]
        sizes |= {name: 32 for name in ("moe_intermediate_size", "head_dim") if name in special}
        tiny(family, **sizes).save_pretrained(folder)
        folders[family] = folder
    return folders


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", (*FAMILIES, *WITH_IMAGES))
def test_trained_saved_and_loaded(
    bases: dict[str, Path], tmp_path: Path, family: str, method: str, objective: str
) -> None:
    import torch

    rules = Train(
        method=method,
        objective=objective,
        lora=Lora(r=2, alpha=4),
        layers=2,
        precision="fp32",
        learning_rate=0.01,
        batch_size=2,
        num_epochs=1,
        warmup_ratio=0.0,
    )
    torch.manual_seed(0)
    base = load_base(bases[family], rules)
    trainable, taken = make_trainable(base, rules), objective_of(rules)
    alone = [replace(row, completions=row.completions[:1]) for row in ROWS]
    rows = usable(ROWS, taken) if taken.preference else alone
    forward = forward_check.choose(trainable.model, trainable.weights, PREFIX, rows)
    assert forward.name == "packed"
    replay = Replay(forward, TEXTS, rules.keep_general, rules.seed, bf16=False)
    replay.measure(2, 4096)
    reference = Reference.measure(forward, rows, taken, 4096, False, SILENT)
    before = {name: weight.detach().clone() for name, weight in trainable.weights.items()}
    optimizer, state = optimizer_for(trainable.weights, rules), checkpoint.TrainingState()
    loop = Loop(forward, trainable.weights, rules, taken, False, tmp_path, SILENT, lambda *_: None, replay, reference)
    loop.run(rows, rows, state, optimizer)
    assert state.step == 2 and state.skipped == 0
    assert all(math.isfinite(line["loss"]) for line in state.history[1:])
    assert any(not torch.equal(weight, before[name]) for name, weight in trainable.weights.items())
    trainable.round()
    trainable.save(tmp_path / "out", family, base.tokenizer)
    ids = torch.tensor([ROWS[0].prompt])
    with torch.no_grad():
        expected = (trainable.wrapped or trainable.model)(input_ids=ids).logits
        loaded = load(bases[family], tmp_path / "out").model(input_ids=ids).logits
        torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=1e-6)
