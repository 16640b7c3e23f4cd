"""Is the packed loss right for this architecture? Asked once, before the first step, of the model itself.

What is right for Llama may be wrong for the next one: Granite scales its logits and its embeddings, Gemma 2 caps scores
and attends through a window. Such a model would train without complaint on a loss that is not its own. So a few rows
are computed by transformers' own forward pass as well, and a difference beyond rounding refuses the model.

    check(model, prefix, rows)     # ModelError: GraniteForCausalLM computes its loss in another way ...

Compared are the loss of every supervised token of the shortest and the longest row, and the gradients of the two
shortest. Both in fp32, where rounding hides nothing, and with an adapter that is not zero, as in training: what one way
does to the tuned layers shows. The weights are lossless in fp32 and get their type back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.train.packing import PackedModel
from finetune_pipeline.train.tokenize import Encoded

LOSS_ROUNDING = 1e-3  # of a token's loss, in nats and relative: fp32 makes 1e-5 of it
GRADIENT_ROUNDING = 1e-2  # of a weight's gradient, relative: fp32 makes 1e-4 of it
NOISE = 0.02  # on the adapter: about a tenth of a layer's output
_HINT = "choose a base model of the Llama, Qwen, Mistral, SmolLM or Phi families"


def check(model: Any, prefix: Sequence[int], rows: Sequence[Encoded]) -> None:
    """ModelError unless both ways give the same losses and gradients. The model is left as it was."""
    import torch

    by_length = sorted(rows, key=lambda row: len(row.ids))
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    try:
        with _in_fp32(model, weights.values()):
            packed = PackedModel(model, prefix)
            found = _losses(model, packed, [by_length[0], by_length[-1]])
            found = found or _gradients(model, packed, by_length[:2], weights)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
        raise ModelError(f"{type(model).__name__} cannot be computed in packed rows: {error}", _HINT) from error
    except ModelError as error:
        raise ModelError(f"{type(model).__name__} cannot be trained here: {error.message}", error.hint) from error
    if found:
        raise ModelError(
            f"{type(model).__name__} computes its loss in another way than packed rows do: {found} "
            "(scaled logits or embeddings, soft caps, or a window shorter than a row)",
            _HINT,
        )


def _losses(model: Any, packed: PackedModel, rows: Sequence[Encoded]) -> str:
    """The supervised token whose losses are too far apart, in words; nothing if there is none."""
    import torch

    with torch.no_grad():
        fast = packed.token_losses(rows)
        with _own_attention(model):
            whole = torch.cat([_whole(model, row) for row in rows])
    apart = (fast - whole).abs() / whole.abs().clamp(min=1.0)
    worst = int(apart.nan_to_num(nan=float("inf")).argmax())
    if float(apart[worst]) <= LOSS_ROUNDING:
        return ""
    return f"a token's loss is {float(whole[worst]):.4f} as a whole, {float(fast[worst]):.4f} packed"


def _gradients(model: Any, packed: PackedModel, rows: Sequence[Encoded], weights: dict[str, Any]) -> str:
    """The weight whose gradients are too far apart, in words; nothing if there is none."""
    import torch

    fast = torch.autograd.grad(packed.loss(rows)[0], list(weights.values()), allow_unused=True)
    with _own_attention(model):
        loss = torch.stack([_whole(model, row).sum() for row in rows]).sum()
    whole = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    sizes = [0.0 if gradient is None else float(gradient.norm()) for gradient in whole]
    for name, ours, theirs, size in zip(weights, fast, whole, sizes, strict=True):
        if ours is None or theirs is None:
            apart = 0.0 if ours is theirs else float("inf")
        else:
            apart = float((ours - theirs).norm()) / max(size, 1e-3 * max(sizes), 1e-12)
        if not apart <= GRADIENT_ROUNDING:
            return f"the gradient of {name} is off by {apart:.1%}"
    return ""


def _whole(model: Any, row: Encoded) -> Any:
    """Losses of the row's supervised tokens, by the model's own forward pass."""
    import torch

    device, count = next(model.parameters()).device, len(row.answer)
    ids = torch.tensor([row.ids], device=device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[0, -count - 1 : -1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer, device=device), reduction="none")


@contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    """The model with an attention of transformers' own within the block: the one it would use by itself."""
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = "sdpa" if model._supports_sdpa else "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@contextmanager
def _in_fp32(model: Any, weights: Any) -> Iterator[None]:
    """Within the block: everything in fp32, no dropout, some noise on the trainable `weights`. Afterwards: as before.

    Weights of 16 bits are converted where they are and back again, which is exact, and takes no second model.
    """
    import torch

    attention, modes = model.config._attn_implementation, [(part, part.training) for part in model.modules()]
    short = (torch.bfloat16, torch.float16)
    narrow = [(t, t.dtype) for t in chain(model.parameters(), model.buffers()) if t.dtype in short]
    kept = [(weight, weight.detach().clone()) for weight in weights]
    random = torch.Generator().manual_seed(0)  # a source of its own: the training's is left alone
    try:
        model.eval()
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        for weight, _ in kept:
            weight.data += NOISE * torch.randn(weight.shape, generator=random).to(weight.device)
        yield
    finally:
        for tensor, kind in narrow:
            tensor.data = tensor.data.to(kind)
        for weight, value in kept:
            weight.data.copy_(value)
        for part, training in modes:
            part.training = training
        model.config._attn_implementation = attention
