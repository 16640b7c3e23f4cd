"""Choose the forward pass, before the first step: packed rows where they give the model's own losses and gradients.

    forward = choose(model, prefix, rows, report)       # PackedForward, or PaddedForward with a line in the log

The packed computation is right for the families in the tests, and may be wrong for another: such a model would be
trained on a wrong loss without any error. So a few rows are computed both ways. Where the two differ beyond rounding,
or the model cannot be packed at all, the training computes padded rows, which takes longer; and where the padded rows
differ from single ones, too, it is refused.

Compared are the losses of all learned tokens of the shortest and the longest row, and the gradients of the two shortest
rows: in fp32, where rounding cannot hide a difference, and with noise on the adapter, so that it contributes. 16-bit
weights are exact in fp32, and get their type back. Where fp32 does not fit into the memory, the comparison is made in
the training's own precision, with wider tolerances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psutil

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.model_family import HINT
from finetune_pipeline.models.device import release_memory
from finetune_pipeline.models.training_fit import ROOM
from finetune_pipeline.records import SILENT, Reporter
from finetune_pipeline.train.forward import Forward, without_dropout
from finetune_pipeline.train.packing import PackedForward
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline.train.tokenize import TokenizedExample

NOISE = 0.02  # standard deviation, added to the trainable weights: changes a layer's output by about a tenth


@dataclass(frozen=True, slots=True)
class Tolerance:
    """`loss`: of a token's loss, in nats and relative; `gradient`: of a weight's gradient, relative."""

    loss: float
    gradient: float


FP32 = Tolerance(loss=1e-3, gradient=1e-2)  # rounding is about 1e-5 and 1e-4
OWN_PRECISION = Tolerance(loss=0.1, gradient=0.3)  # rounding in bf16 is about 0.02 and 0.05


def choose(
    model: Any,
    weights: Mapping[str, Any],
    prefix: Sequence[int],
    rows: Sequence[TokenizedExample],
    report: Reporter = SILENT,
) -> Forward:
    """The packed forward pass if it equals the model's own, else the padded one, announced in the log. ModelError when
    that differs, too. `weights`: the trainable tensors. The model is left unchanged."""
    problem = difference(model, weights, lambda: PackedForward(model, prefix), rows)
    if not problem:
        return PackedForward(model, prefix)
    report.log(
        f"{type(model).__name__} cannot be computed on packed rows ({problem}); this training pads its rows, which "
        "takes longer"
    )
    problem = difference(model, weights, lambda: PaddedForward(model), rows)
    if problem:
        raise ModelError(f"{type(model).__name__} cannot be trained: with padded rows, {problem}", HINT)
    return PaddedForward(model)


def require_same(forward: Forward, weights: Mapping[str, Any], rows: Sequence[TokenizedExample]) -> None:
    """ModelError when this forward pass, with gradient checkpointing, differs from the model's own."""
    problem = difference(forward.model, weights, forward.renewed, rows)
    if problem:
        raise ModelError(
            f"{type(forward.model).__name__} cannot be trained with gradient checkpointing: {problem}",
            "set `train.gradient_checkpointing: false`",
        )


def difference(model: Any, weights: Mapping[str, Any], make: Any, rows: Sequence[TokenizedExample]) -> str:
    """How the forward pass that `make` returns differs from the model's own, in words; "" if it does not."""
    import torch

    try:
        if _fp32_fits(model):
            with suppress(torch.OutOfMemoryError):
                return _compare(model, weights, make, rows, in_fp32=True)
            release_memory()
        return _compare(model, weights, make, rows, in_fp32=False)
    finally:
        release_memory()


def _fp32_fits(model: Any) -> bool:
    """Whether there is memory for 16-bit weights in fp32. A GPU would report that there is none; a process that takes
    too much of a machine's memory is killed. A model that will be spread over GPUs is on the CPU, too."""
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    more = sum(weight.numel() * (4 - weight.element_size()) for weight in weights)
    return bool(weights[0].is_cuda) or more < ROOM * psutil.virtual_memory().available


def _compare(model: Any, weights: Mapping[str, Any], make: Any, rows: Sequence[TokenizedExample], in_fp32: bool) -> str:
    import torch

    by_length = sorted(rows, key=lambda row: row.tokens)
    tolerance = FP32 if in_fp32 else OWN_PRECISION
    with _prepared(model, [weight for name, weight in weights.items() if "lora_" in name], in_fp32):
        own = PaddedForward(model)
        with torch.no_grad():
            expected = torch.cat([own.losses([row]) for row in (by_length[0], by_length[-1])])
        gradients = _gradients(lambda: sum(own.losses([row]).sum() for row in by_length[:2]), weights)
        try:
            forward = make()
            with torch.no_grad():
                actual = forward.losses([by_length[0], by_length[-1]])
            problem = _loss_difference(expected, actual, tolerance)
            return problem or _gradient_difference(
                gradients, _gradients(lambda: forward.losses(by_length[:2]).sum(), weights), tolerance
            )
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            return str(error)
        except ModelError as error:
            return error.message


def _loss_difference(expected: Any, actual: Any, tolerance: Tolerance) -> str:
    errors = (actual - expected).abs() / expected.abs().clamp(min=1.0)
    worst = int(errors.nan_to_num(nan=float("inf")).argmax())
    if float(errors[worst]) <= tolerance.loss:
        return ""
    return f"the loss of a token is {float(expected[worst]):.4f} alone, {float(actual[worst]):.4f} here"


def _gradients(loss: Any, weights: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    found = torch.autograd.grad(loss(), list(weights.values()), allow_unused=True)
    return dict(zip(weights, found, strict=True))


def _gradient_difference(expected: Mapping[str, Any], actual: Mapping[str, Any], tolerance: Tolerance) -> str:
    """The first weight whose gradients differ, in words; "" when all are within the tolerance."""
    norms = {name: 0.0 if gradient is None else float(gradient.norm()) for name, gradient in expected.items()}
    for name, own in expected.items():
        other = actual[name]
        if own is None or other is None:
            error = 0.0 if own is other else float("inf")
        else:
            error = float((own - other).norm()) / max(norms[name], 1e-3 * max(norms.values()), 1e-12)
        if not error <= tolerance.gradient:
            return f"the gradient of {name} differs by {error:.1%}"
    return ""


@contextmanager
def _prepared(model: Any, adapter: Sequence[Any], in_fp32: bool) -> Iterator[None]:
    """Within the block: no dropout, noise on the weights of the `adapter`, which begin at zero, and everything in fp32
    if `in_fp32`. Afterwards as before.

    16-bit tensors are converted in place and back, which is exact and needs no second model; 4-bit layers compute their
    products in fp32.
    """
    import torch

    dtypes = (torch.bfloat16, torch.float16) if in_fp32 else ()
    narrow = [(t, t.dtype) for t in chain(model.parameters(), model.buffers()) if t.dtype in dtypes]
    quantized = [(p, p.compute_dtype) for p in model.modules() if in_fp32 and hasattr(p, "compute_dtype")]
    original = [(weight, weight.detach().clone()) for weight in adapter]
    generator = torch.Generator().manual_seed(0)  # a separate one: the training's random state is not changed
    try:
        for tensor, _ in narrow:
            tensor.data = tensor.data.float()
        for part, _ in quantized:
            part.compute_dtype = torch.float32
        for weight, _ in original:
            noise = NOISE * torch.randn(weight.shape, generator=generator)
            weight.data += noise.to(weight.device, weight.dtype)
        with without_dropout(model):
            yield
    finally:
        for tensor, dtype in narrow:
            tensor.data = tensor.data.to(dtype)
        for part, dtype in quantized:
            part.compute_dtype = dtype
        for weight, value in original:
            weight.data.copy_(value)
