"""The packed loss is checked against the model's own: right for Llama, refused where it would be silently wrong."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.train.adapter import with_adapter
from finetune_pipeline.train.forward_check import check
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.tokenize import Encoded
from finetune_pipeline_tests.train.architectures import KINDS, tiny

PREFIX = [1, 5]
ROWS = [
    Encoded("a", [1, 5, 6, 7, 8], [9, 10, 2], True),
    Encoded("b", [1, 5, 6, 11], [12, 2], True),
    Encoded("c", [1, 5, 20, 21, 22, 23], [24, 25, 2], True),
]
RIGHT = ["llama", "smollm", "qwen2", "qwen3", "mistral", "phi3", "qwen2_moe", "qwen3_moe"]
WRONG = ["gemma2", "gemma3", "granite", "mistral_window", "cohere"]
PRECISIONS = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
LAYERS = pytest.mark.parametrize("layers", [None, 1])


def adapted(kind: str, dtype: str, layers: int | None, dropout: float = 0.0) -> Any:
    model = tiny(kind, dtype)
    with_adapter(model, Train(lora=Lora(r=2, dropout=dropout), layers=layers))
    return model


@PRECISIONS
@LAYERS
@pytest.mark.parametrize("kind", RIGHT)
def test_plain_attention_passes(kind: str, layers: int | None, dtype: str) -> None:
    check(adapted(kind, dtype, layers), PREFIX, ROWS)


@PRECISIONS
@LAYERS
@pytest.mark.parametrize("kind", WRONG)
def test_what_would_train_on_another_loss_is_refused_by_name(kind: str, layers: int | None, dtype: str) -> None:
    model = adapted(kind, dtype, layers)
    with pytest.raises(ModelError, match=KINDS[kind][0]):
        check(model, PREFIX, ROWS)


def test_scaled_logits_are_told_by_their_loss() -> None:
    with pytest.raises(ModelError, match=r"a token's loss is 4\.\d+ as a whole, 4\.\d+ packed"):
        check(adapted("granite", "bfloat16", None), PREFIX, ROWS)


def test_a_gradient_that_is_lost_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are right, but a layer that is tuned is taken for a frozen one."""
    model = adapted("llama", "float32", 2)
    monkeypatch.setattr("finetune_pipeline.train.packing.frozen_layers", lambda model: 2)
    with pytest.raises(ModelError, match=r"the gradient of model\.layers\.1\..* is off"):
        check(model, PREFIX, ROWS)


def test_a_window_longer_than_every_row_passes() -> None:
    model = adapted("mistral_window", "bfloat16", None)
    model.config.sliding_window = 9
    check(model, PREFIX, ROWS)
    with pytest.raises(ModelError, match="a row of 10 tokens is longer than the attention window of 9"):
        check(model, PREFIX, [*ROWS, Encoded("d", [1, 5, *range(10, 16)], [3, 2], True)])


@pytest.mark.parametrize("kind", ["llama", "granite"])
def test_the_model_is_left_as_it_was(kind: str) -> None:
    import torch

    model = adapted(kind, "bfloat16", 1, dropout=0.5)
    model.model.norm.eval()  # a part in a mode of its own
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    objects = {name: id(value) for name, value in model.named_parameters()}
    modes = [part.training for part in model.modules()]
    attention, state = model.config._attn_implementation, torch.get_rng_state()
    try:
        check(model, PREFIX, ROWS)
    except ModelError:
        assert kind == "granite"
    after = dict([*model.named_parameters(), *model.named_buffers()])
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name
    assert {name: id(value) for name, value in model.named_parameters()} == objects
    assert all(weight.grad is None for weight in model.parameters())
    assert [part.training for part in model.modules()] == modes
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), state)


def test_few_rows_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way computes the shortest and the longest row, and the two shortest: however many rows there are."""
    computed: list[str] = []
    real = PackedModel._hidden

    def counted(self: PackedModel, packed: Any) -> Any:
        computed.extend(row.id for row in packed.rows)
        return real(self, packed)

    monkeypatch.setattr(PackedModel, "_hidden", counted)
    many = [Encoded(f"row{n}", [1, 5, *range(6, 10 + n % 20)], [9, 2], True) for n in range(200)]
    check(adapted("llama", "float32", None), PREFIX, many)
    assert computed == ["row0", "row199", "row0", "row20"]
