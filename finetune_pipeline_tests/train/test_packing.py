"""The packed forward pass: a tree of segments, losses and gradients of every row alone, bounded caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Lora, Train
from finetune_pipeline.train import forward as forward_module
from finetune_pipeline.train import packing
from finetune_pipeline.train.forward import frozen_layers, targets
from finetune_pipeline.train.method import Base, make_trainable
from finetune_pipeline.train.packing import PackedForward, packed_parts
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline.train.tokenize import Completion, TokenizedExample
from finetune_pipeline.train.tree import PackedTree
from finetune_pipeline.train.tree_attention import Masks, TreeLayout, tree_attention
from finetune_pipeline_tests.train.architectures import tiny
from finetune_pipeline_tests.train.setup import RULES, Setup

PREFIX = [1, 5]
SINGLE = TokenizedExample("single", [1, 5, 6, 7], (Completion([9, 2]),))
PAIR = TokenizedExample("pair", [1, 5, 6, 11], (Completion([12, 13, 2]), Completion([14, 2])))
TURNS = TokenizedExample("turns", [1, 5, 20], (Completion([24, 2, 7, 8, 25, 2], ((0, 2), (4, 6))),))
OTHER = TokenizedExample("other", [30], (Completion([31, 32]),))


def test_every_token_is_in_the_tree_once_and_the_last_ones_are_not() -> None:
    tree = PackedTree.of(PREFIX, [SINGLE, PAIR, TURNS, OTHER])
    segments = [(list(s.ids), s.start, s.parent) for s in tree.segments]
    assert segments == [
        ([1, 5], 0, -1),
        ([6, 7, 9], 2, 0),
        ([6, 11], 2, 0),
        ([12, 13], 4, 2),
        ([14], 4, 2),
        ([20, 24, 2, 7, 8, 25], 2, 0),
        ([30, 31], 0, -1),
    ]
    assert tree.positions == [0, 1, 2, 3, 4, 2, 3, 4, 5, 4, 2, 3, 4, 5, 6, 7, 0, 1]
    assert tree.paths == ((), (0,), (0,), (0, 2), (0, 2), (0,), ())
    predictors = [tree.ids[index] for index in tree.wanted]
    assert predictors == [7, 9, 11, 12, 13, 11, 14, 20, 24, 8, 25, 30, 31]
    assert targets([SINGLE, PAIR, TURNS, OTHER]) == [9, 2, 12, 13, 2, 14, 2, 24, 2, 25, 2, 31, 32]


def test_what_is_cached_is_left_out_unless_something_below_needs_it() -> None:
    tree = PackedTree.of(PREFIX, [SINGLE, PAIR])
    prefix, single, prompt, chosen, rejected = tree.keys
    assert tree.without({*tree.keys}).segments == ()
    assert tree.without({prefix, single, prompt, chosen}).keys == (prefix, prompt, rejected)
    assert tree.without({prefix, prompt, chosen, rejected}).keys == (prefix, single)
    assert len({*tree.keys, *PackedTree.of(PREFIX, [OTHER]).keys}) == 6


@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_losses_and_gradients_equal_those_of_every_row_alone(
    tiny_model: Path, layers: int | None, objective: str
) -> None:
    import torch

    rules = RULES.model_copy(update={"layers": layers, "objective": objective})
    packed, plain = Setup(tiny_model, rules), Setup(tiny_model, rules)
    assert len(packed.prefix) > 10, "the system prompt is shared"
    for _ in range(2):  # the second time, the frozen layers' output comes from the cache
        for weight in packed.weights.values():
            weight.grad = None
        losses = packed.forward.losses(packed.rows)
        losses.sum().backward()
    alone = torch.cat([PaddedForward(plain.model).losses([row]) for row in plain.rows])
    alone.sum().backward()
    torch.testing.assert_close(losses, alone, rtol=1e-4, atol=1e-5)
    for name, weight in packed.weights.items():
        expected = plain.weights[name].grad
        assert float(torch.linalg.norm(weight.grad - expected) / torch.linalg.norm(expected)) < 1e-4, name


def test_padded_rows_have_the_losses_of_every_row_alone(tiny_model: Path) -> None:
    import torch

    setup = Setup(tiny_model, RULES.model_copy(update={"objective": "dpo"}))
    padded = PaddedForward(setup.model)
    alone = torch.cat([padded.losses([row]) for row in setup.rows])
    torch.testing.assert_close(padded.losses(setup.rows), alone, rtol=1e-4, atol=1e-5)
    parts = padded.micro_batches(setup.rows, 300)
    assert len(parts) > 2 and sorted(r.id for part in parts for r in part) == sorted(r.id for r in setup.rows)
    assert all(padded.computed_tokens(part) <= 300 for part in parts)


def test_micro_batches_have_the_same_total_loss(tiny_model: Path) -> None:
    setup = Setup(tiny_model)
    whole = float(setup.forward.losses(setup.rows).sum().detach())
    parts = setup.forward.micro_batches(setup.rows, len(setup.prefix) + 64)
    assert len(parts) > 2
    assert all(setup.forward.computed_tokens(part) <= len(setup.prefix) + 64 for part in parts)
    assert sum(float(setup.forward.losses(part).sum().detach()) for part in parts) == pytest.approx(whole, rel=1e-5)


def test_micro_batches_of_rows_that_are_not_below_the_prefix_are_limited_as_well() -> None:
    """General texts are much shorter than a long system prompt."""
    prefix = list(range(500))
    texts = [TokenizedExample(f"text{n}", [1], (Completion([7] * 63),)) for n in range(100)]
    parts = packed_parts(prefix, texts, 1000)
    assert sum(map(len, parts)) == 100
    assert all(sum(PackedTree.of(prefix, part).lengths) <= 1000 for part in parts)


@pytest.mark.parametrize("tokens", [1, 7])
def test_logits_in_chunks_give_the_same_losses_and_gradients(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    import torch

    results = []
    for limit in (None, tokens):
        setup = Setup(tiny_model)
        if limit:
            monkeypatch.setattr(forward_module, "LOGITS_BYTES", 4 * setup.forward.vocabulary * limit)
        losses = setup.forward.losses(setup.rows)
        losses.sum().backward()
        results.append((losses.detach(), {name: weight.grad for name, weight in setup.weights.items()}))
    (whole, gradients), (chunked, others) = results
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        assert float(torch.linalg.norm(gradient - others[name]) / torch.linalg.norm(gradient)) < 1e-5, name


def test_the_logits_of_a_large_vocabulary_take_less_than_a_gigabyte(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(tiny_model)
    monkeypatch.setattr(type(setup.forward), "vocabulary", 262_144)
    assert 7 * 4 * 262_144 * setup.forward.chunk_tokens <= 1024**3


def test_the_output_of_frozen_layers_is_cached_up_to_a_limit(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(tiny_model, RULES.model_copy(update={"layers": 1}))
    whole = float(setup.forward.losses(setup.rows).sum().detach())
    cached_bytes = sum(part.untyped_storage().nbytes() for part in setup.forward._cache.values())
    monkeypatch.setattr(packing, "CACHE_BYTES", cached_bytes // 2)
    bounded = PackedForward(setup.model, setup.prefix)
    for _ in range(2):  # the second time, one half comes from the cache
        assert float(bounded.losses(setup.rows).sum().detach()) == pytest.approx(whole, rel=1e-5)
        assert 0 < sum(part.untyped_storage().nbytes() for part in bounded._cache.values()) <= cached_bytes // 2


def test_frozen_layers_are_those_below_the_first_trainable_weight() -> None:
    model = tiny("llama")
    make_trainable(Base(model, None, frozenset({2}), None), Train(lora=Lora(r=2), layers=1))
    assert frozen_layers(model) == 2
    for name, weight in model.named_parameters():
        if "layers.1." in name and "o_proj" in name:
            weight.requires_grad_(True)
    assert frozen_layers(model) == 1
    PackedForward(model, PREFIX).losses([SINGLE, PAIR]).sum().backward()
    assert model.model.layers[1].self_attn.o_proj.weight.grad.abs().sum() > 0
    model.get_input_embeddings().weight.requires_grad_(True)
    assert frozen_layers(model) == 0


@pytest.mark.parametrize("window", [None, 5])
def test_masks_of_many_lengths_take_the_memory_of_the_longest_one(window: int | None) -> None:
    """And each mask is the causal mask of its length, within the window."""
    import torch

    masks, like = Masks(), torch.zeros(1)
    sizes = set()
    for own in [*range(1, 130), *range(130, 0, -1)]:
        mask = masks(own, 7, window, like)
        sizes.add(mask.untyped_storage().nbytes())
        distance = torch.arange(own)[:, None] + 7 - torch.arange(own + 7)[None]
        assert torch.equal(mask == 0, (distance >= 0) & (distance < (window or 1000)))
    assert max(sizes) <= 4 * 192 * (192 + 64)
    assert len(sizes) == 3, "a new mask every 64 tokens, only while rows get longer"


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_one_call_of_flex_attention_equals_the_call_for_each_segment(window: int | None, softcap: float | None) -> None:
    """The computation of a GPU, without its compiler."""
    import torch

    from finetune_pipeline.train import tree_attention as module

    torch.manual_seed(0)
    tree = PackedTree.of(PREFIX, [SINGLE, PAIR, TURNS, OTHER])
    query, key, value = (torch.randn(1, heads, sum(tree.lengths), 16) for heads in (4, 2, 2))
    arguments: dict[str, Any] = {"sliding_window": window, "softcap": softcap, "tree": TreeLayout(tree)}
    by_segment, _ = tree_attention(object(), query, key, value, None, **arguments)
    flex = module._flex(query, key, value, TreeLayout(tree), 0.25, window, softcap)
    torch.testing.assert_close(flex.transpose(1, 2), by_segment, rtol=1e-5, atol=1e-5)


def test_an_unknown_setting_of_attention_is_an_error() -> None:
    import torch

    tree = PackedTree.of(PREFIX, [SINGLE])
    states = torch.randn(1, 2, sum(tree.lengths), 8)
    with pytest.raises(ValueError, match="passes `alibi` to its attention function"):
        tree_attention(object(), states, states, states, None, tree=TreeLayout(tree), alibi=True)


def random_tree(seed: int) -> PackedTree:
    """Rows and pairs of many lengths below a prefix, and a long row of its own."""
    import random

    rng = random.Random(seed)
    prefix = list(range(100, 140))

    def tokens(most: int) -> list[int]:
        return [rng.randrange(50) for _ in range(rng.randrange(1, most))]

    rows = [
        TokenizedExample(str(n), prefix + tokens(30), tuple(Completion(tokens(12)) for _ in range(rng.choice([1, 2]))))
        for n in range(9)
    ]
    return PackedTree.of(prefix, [*rows, TokenizedExample("text", [1], (Completion(list(range(60))),))])


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize(
    ("narrow", "tolerance", "kept", "block"), [(False, 1e-5, 0, 0), (True, 1e-2, 1024, 256), (True, 1e-2, 8, 7)]
)
def test_a_few_calls_for_the_whole_tree_equal_the_call_for_each_segment(
    heads: int, kv_heads: int, narrow: bool, tolerance: float, kept: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradients; `narrow`: in bf16, also where the weights are not kept, and in blocks of queries."""
    import functools

    import torch

    from finetune_pipeline.train import attention_parts, cpu_attention
    from finetune_pipeline.train import tree_attention as module

    monkeypatch.setattr(attention_parts, "KEPT_KEYS", kept)
    monkeypatch.setattr(attention_parts, "CAUSAL_BLOCK", block)
    if block < 64:
        monkeypatch.setattr(attention_parts, "BLOCK_SCORES", 0)
        monkeypatch.setattr(attention_parts, "LEAST_BLOCK", block)
    tree = random_tree(heads)
    results = []
    for whole in (True, False):
        generator = torch.Generator().manual_seed(1)
        shapes = [(1, count, sum(tree.lengths), 16) for count in (heads, kv_heads, kv_heads)]
        query, key, value = (torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes)
        if whole:
            out = cpu_attention.attend(query, key, value, TreeLayout(tree).cascade, 0.25, narrow)
        else:
            attend = functools.partial(module._attend, 0.25, None, None)
            out = module._by_segment(query, key, value, TreeLayout(tree), attend, None)
        out.backward(torch.randn(out.shape, generator=generator))
        results.append((out.detach(), query.grad, key.grad, value.grad))
    for ours, expected in zip(*results, strict=True):
        assert ours is not None and expected is not None
        assert float((ours - expected).norm() / expected.norm()) < tolerance
    assert narrow or torch.allclose(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
