"""The packed loss is compared with the model's own: equal for Llama, an error where it would be silently wrong."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.train.adapter import with_adapter
from finetune_pipeline.train.forward_check import check
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.tokenize import TokenizedExample
from finetune_pipeline_tests.train.architectures import FAMILIES, tiny

PREFIX = [1, 5]
ROWS = [
    TokenizedExample("a", [1, 5, 6, 7, 8], [9, 10, 2], True),
    TokenizedExample("b", [1, 5, 6, 11], [12, 2], True),
    TokenizedExample("c", [1, 5, 20, 21, 22, 23], [24, 25, 2], True),
]
SUPPORTED = ["llama", "smollm", "qwen2", "qwen3", "mistral", "phi3", "qwen2_moe", "qwen3_moe"]
UNSUPPORTED = ["gemma2", "gemma3", "granite", "mistral_window", "cohere"]
PRECISIONS = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
LAYERS = pytest.mark.parametrize("layers", [None, 1])


def adapted(family: str, dtype: str, layers: int | None, dropout: float = 0.0) -> Any:
    model = tiny(family, dtype)
    with_adapter(model, Train(lora=Lora(r=2, dropout=dropout), layers=layers))
    return model


@PRECISIONS
@LAYERS
@pytest.mark.parametrize("family", SUPPORTED)
def test_supported_families_pass(family: str, layers: int | None, dtype: str) -> None:
    check(adapted(family, dtype, layers), PREFIX, ROWS)


@PRECISIONS
@LAYERS
@pytest.mark.parametrize("family", UNSUPPORTED)
def test_a_family_with_another_loss_is_an_error_that_names_it(family: str, layers: int | None, dtype: str) -> None:
    model = adapted(family, dtype, layers)
    with pytest.raises(ModelError, match=FAMILIES[family][0]):
        check(model, PREFIX, ROWS)


def test_scaled_logits_are_an_error_with_both_losses() -> None:
    with pytest.raises(ModelError, match=r"the loss of a token is 4\.\d+ in its own, 4\.\d+ packed"):
        check(adapted("granite", "bfloat16", None), PREFIX, ROWS)


def test_a_missing_gradient_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are equal, but a tuned layer is treated as frozen."""
    model = adapted("llama", "float32", 2)
    monkeypatch.setattr("finetune_pipeline.train.packing.frozen_layers", lambda model: 2)
    with pytest.raises(ModelError, match=r"the gradient of model\.layers\.1\..* differs by"):
        check(model, PREFIX, ROWS)


def test_a_window_longer_than_every_row_passes() -> None:
    model = adapted("mistral_window", "bfloat16", None)
    model.config.sliding_window = 9
    check(model, PREFIX, ROWS)
    with pytest.raises(ModelError, match="a sequence of 10 tokens is longer than the attention window of 9"):
        check(model, PREFIX, [*ROWS, TokenizedExample("d", [1, 5, *range(10, 16)], [3, 2], True)])


@pytest.mark.parametrize("family", ["llama", "granite"])
def test_the_model_is_left_unchanged(family: str) -> None:
    import torch

    model = adapted(family, "bfloat16", 1, dropout=0.5)
    model.model.norm.eval()  # a module in another mode than the rest
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    objects = {name: id(value) for name, value in model.named_parameters()}
    modes = [part.training for part in model.modules()]
    attention, state = model.config._attn_implementation, torch.get_rng_state()
    try:
        check(model, PREFIX, ROWS)
    except ModelError:
        assert family == "granite"
    after = dict([*model.named_parameters(), *model.named_buffers()])
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name
    assert {name: id(value) for name, value in model.named_parameters()} == objects
    assert all(weight.grad is None for weight in model.parameters())
    assert [part.training for part in model.modules()] == modes
    assert model.config._attn_implementation == attention
    assert torch.equal(torch.get_rng_state(), state)


def test_only_the_shortest_and_longest_rows_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest and the longest for the losses, the two shortest for the gradients, of any number of rows."""
    computed: list[str] = []
    real = PackedModel._hidden

    def counted(self: PackedModel, packed: Any) -> Any:
        computed.extend(row.id for row in packed.rows)
        return real(self, packed)

    monkeypatch.setattr(PackedModel, "_hidden", counted)
    examples = [TokenizedExample(f"row{n}", [1, 5, *range(6, 10 + n % 20)], [9, 2], True) for n in range(200)]
    check(adapted("llama", "float32", None), PREFIX, examples)
    assert computed == ["row0", "row199", "row0", "row20"]
