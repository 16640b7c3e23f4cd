"""The packed computation is compared with the model's own before the first step; padded rows where it differs."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.records import SILENT
from finetune_pipeline.train.forward_check import choose, difference
from finetune_pipeline.train.method import Base, Trainable, make_trainable
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline.train.tokenize import Completion, TokenizedExample
from finetune_pipeline_tests.train.architectures import FAMILIES, tiny
from finetune_pipeline_tests.train.setup import LogRecorder

PREFIX = [1, 5]
ROWS = [
    TokenizedExample("a", [1, 5, 6, 7, 8], (Completion([9, 10, 2]), Completion([11, 2]))),
    TokenizedExample("b", [1, 5, 6, 11], (Completion([12, 2]),)),
    TokenizedExample("c", [1, 5, 20, 21, 22, 23], (Completion([24, 25, 2, 7, 8, 9, 2], ((0, 3), (5, 7))),)),
]


def adapted(family: str, dtype: str = "float32", layers: int | None = None, dropout: float = 0.0) -> Trainable:
    rules = Train(lora=Lora(r=2, dropout=dropout), layers=layers)
    return make_trainable(Base(tiny(family, dtype), None, frozenset({2}), None), rules)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_computed_on_packed_rows(family: str, layers: int | None, dtype: str) -> None:
    """Soft caps, windows, scaled logits and embeddings included."""
    trained = adapted(family, dtype, layers)
    assert isinstance(choose(trained.model, trained.weights, PREFIX, ROWS), PackedForward)


def test_a_model_that_cannot_be_packed_is_trained_on_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: PackedForward, rows: Any) -> Any:
        return real(self, rows) * 1.1

    real = PackedForward.states
    monkeypatch.setattr(PackedForward, "states", other)
    trained, report = adapted("llama"), LogRecorder()
    forward = choose(trained.model, trained.weights, PREFIX, ROWS, report)
    assert isinstance(forward, PaddedForward)
    assert "LlamaForCausalLM cannot be computed on packed rows (the loss of a token is" in report.lines[0]


def test_a_model_whose_padded_rows_differ_too_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, rows: Any) -> Any:
        return real(self, rows) * (1.1 if len(rows) > 1 else 1.0)

    real = PaddedForward.states
    monkeypatch.setattr(PaddedForward, "states", other)
    monkeypatch.setattr(PackedForward, "states", lambda self, rows: (_ for _ in ()).throw(ValueError("no layers")))
    trained = adapted("llama")
    with pytest.raises(ModelError, match="LlamaForCausalLM cannot be trained: with padded rows, the loss of a token"):
        choose(trained.model, trained.weights, PREFIX, ROWS)


def test_a_missing_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are equal, but a tuned layer is treated as frozen."""
    trained = adapted("llama", layers=2)
    monkeypatch.setattr("finetune_pipeline.train.packing.frozen_layers", lambda model: 2)
    problem = difference(trained.model, trained.weights, lambda: PackedForward(trained.model, PREFIX), ROWS)
    assert "the gradient of" in problem and "layers.1." in problem


def test_the_comparison_is_made_in_the_own_precision_when_fp32_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from finetune_pipeline.train import forward_check

    used: list[bool] = []
    real = forward_check._compare

    def compared(*arguments: Any, **options: Any) -> str:
        used.append(options["in_fp32"])
        if options["in_fp32"]:
            raise torch.OutOfMemoryError
        return real(*arguments, **options)

    monkeypatch.setattr(forward_check, "_compare", compared)
    trained = adapted("llama", "bfloat16")
    assert isinstance(choose(trained.model, trained.weights, PREFIX, ROWS, SILENT), PackedForward)
    assert used == [True, False]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_model_is_left_unchanged(family: str) -> None:
    import torch

    trained = adapted(family, "bfloat16", 1, dropout=0.5)
    model = trained.model
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    objects = {name: id(value) for name, value in model.named_parameters()}
    modes = [part.training for part in model.modules()]
    attention, state = model.config._attn_implementation, torch.get_rng_state()
    choose(model, trained.weights, PREFIX, ROWS)
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
    real = PackedForward.states

    def counted(self: PackedForward, rows: Any) -> Any:
        computed.extend(row.id for row in rows)
        return real(self, rows)

    monkeypatch.setattr(PackedForward, "states", counted)
    trained = adapted("llama")
    examples = [TokenizedExample(f"row{n}", [1, 5, *range(6, 10 + n % 20)], (Completion([9, 2]),)) for n in range(200)]
    choose(trained.model, trained.weights, PREFIX, examples)
    assert computed == ["row0", "row199", "row0", "row20"]
