"""Check, before the first step, that the packed loss of this architecture equals that of transformers' forward pass.

    check(model, prefix, rows)     # ModelError: GraniteForCausalLM has another loss in its own forward pass …

The packed computation is right for Llama but may be wrong for another family: Granite scales logits and embeddings,
Gemma 2 caps scores and has an attention window. Such a model would be trained on a wrong loss without any error. So a
few rows are computed both ways, and a difference beyond rounding is an error.

Compared are the losses of all supervised tokens of the shortest and the longest row, and the gradients of the two
shortest rows: in fp32, where rounding cannot hide a difference, and with noise on the adapter, so that the tuned layers
contribute. 16-bit weights are exact in fp32, and get their type back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.model_family import HINT
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.tokenize import TokenizedExample

LOSS_TOLERANCE = 1e-3  # of a token's loss, in nats and relative; rounding in fp32 is about 1e-5
GRADIENT_TOLERANCE = 1e-2  # of a weight's gradient, relative; rounding in fp32 is about 1e-4
NOISE = 0.02  # standard deviation, added to the adapter's weights: changes a layer's output by about a tenth


def check(model: Any, prefix: Sequence[int], rows: Sequence[TokenizedExample]) -> None:
    """ModelError unless losses and gradients are the same both ways. The model is left unchanged."""
    import torch

    by_length = sorted(rows, key=lambda row: len(row.ids))
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    try:
        with _in_fp32_with_noise(model, weights.values()):
            packed = PackedModel(model, prefix)
            difference = _loss_difference(model, packed, [by_length[0], by_length[-1]])
            difference = difference or _gradient_difference(model, packed, by_length[:2], weights)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ModelError(f"{type(model).__name__} cannot be computed on packed rows: {error}", HINT) from error
    except ModelError as error:
        raise ModelError(f"{type(model).__name__} cannot be trained: {error.message}", error.hint) from error
    if difference:
        raise ModelError(
            f"{type(model).__name__} has another loss in its own forward pass than on packed rows: {difference} "
            "(possible reasons: scaled logits or embeddings, soft caps, an attention window shorter than a row)",
            HINT,
        )


def _loss_difference(model: Any, packed: PackedModel, rows: Sequence[TokenizedExample]) -> str:
    """The supervised token whose losses differ most, in words; "" within the tolerance."""
    import torch

    with torch.no_grad():
        actual = packed.token_losses(rows)
        with _transformers_attention(model):
            expected = torch.cat([_row_losses(model, row) for row in rows])
    errors = (actual - expected).abs() / expected.abs().clamp(min=1.0)
    worst = int(errors.nan_to_num(nan=float("inf")).argmax())
    if float(errors[worst]) <= LOSS_TOLERANCE:
        return ""
    return f"the loss of a token is {float(expected[worst]):.4f} in its own, {float(actual[worst]):.4f} packed"


def _gradient_difference(
    model: Any, packed: PackedModel, rows: Sequence[TokenizedExample], weights: dict[str, Any]
) -> str:
    """The first weight whose gradients differ, in words; "" when all are within the tolerance."""
    import torch

    actual = torch.autograd.grad(packed.loss(rows)[0], list(weights.values()), allow_unused=True)
    with _transformers_attention(model):
        loss = torch.stack([_row_losses(model, row).sum() for row in rows]).sum()
    expected = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in expected]
    for name, ours, theirs, norm in zip(weights, actual, expected, norms, strict=True):
        if ours is None or theirs is None:
            error = 0.0 if ours is theirs else float("inf")
        else:
            error = float((ours - theirs).norm()) / max(norm, 1e-3 * max(norms), 1e-12)
        if not error <= GRADIENT_TOLERANCE:
            return f"the gradient of {name} differs by {error:.1%}"
    return ""


def _row_losses(model: Any, row: TokenizedExample) -> Any:
    """Losses (nats) [supervised tokens] of a row by the model's own forward pass."""
    import torch

    device, count = next(model.parameters()).device, len(row.completion)
    ids = torch.tensor([row.ids], device=device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[0, -count - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(row.completion, device=device), reduction="none")


@contextmanager
def _transformers_attention(model: Any) -> Iterator[None]:
    """Within the block, the model computes with the attention that transformers chooses by default."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _in_fp32_with_noise(model: Any, trainable: Any) -> Iterator[None]:
    """Within the block: everything in fp32, no dropout, noise on the `trainable` weights. Afterwards as before.

    16-bit tensors are converted in place and back, which is exact and needs no second model.
    """
    import torch

    attention, modes = model.config._attn_implementation, [(part, part.training) for part in model.modules()]
    dtypes = (torch.bfloat16, torch.float16)
    narrow = [(t, t.dtype) for t in chain(model.parameters(), model.buffers()) if t.dtype in dtypes]
    original = [(weight, weight.detach().clone()) for weight in trainable]
    generator = torch.Generator().manual_seed(0)  # a separate one: the training's random state is not changed
    try:
        model.eval()
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        for weight, _ in original:
            weight.data += NOISE * torch.randn(weight.shape, generator=generator).to(weight.device)
        yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)
        for weight, value in original:
            weight.data.copy_(value)
        for part, training in modes:
            part.training = training
        model.config._attn_implementation = attention
