"""Is the packed loss right for this architecture? Asked once, before the first step, of the model itself.

What is right for Llama may be wrong for the next one: Granite scales its logits and its embeddings, Gemma 2 caps scores
and attends through a window. Such a model would train without complaint on a loss that is not its own. So the shortest
and the longest row are computed whole by transformers' own forward pass as well, and a difference beyond rounding
refuses the model.

    check(model, packed, rows, bf16=False)     # ModelError: GraniteForCausalLM computes its loss in another way ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.train.encode import Encoded
from finetune_pipeline.train.packed import PackedModel

ROUNDING = {False: 1e-3, True: 5e-2}  # relative difference of two losses that fp32 and bf16 may make


def check(model: Any, packed: PackedModel, rows: Sequence[Encoded], bf16: bool) -> None:
    """ModelError unless both ways give the same loss for the shortest and the longest row."""
    import torch

    some = [min(rows, key=lambda row: len(row.ids)), max(rows, key=lambda row: len(row.ids))]
    with torch.no_grad():
        fast = float(packed.loss(some)[0])
        with _own_attention(model):
            whole = sum(_whole(model, row) for row in some)
    if not abs(fast - whole) <= ROUNDING[bf16] * max(1.0, abs(whole)):
        raise ModelError(
            f"{type(model).__name__} computes its loss in another way than packed rows do: {whole:.4f} as a whole, "
            f"{fast:.4f} packed (scaled logits or embeddings, soft caps, or a window shorter than a row)",
            "choose a base model of the Llama, Qwen, Mistral or SmolLM families",
        )


def _whole(model: Any, row: Encoded) -> float:
    import torch

    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor([row.ids], device=device), use_cache=False).logits[0].float()
    start = len(row.prompt) - 1
    targets = torch.tensor(row.answer, device=device)
    return float(torch.nn.functional.cross_entropy(logits[start : start + len(targets)], targets, reduction="sum"))


@contextmanager
def _own_attention(model: Any) -> Iterator[None]:
    """The model with an attention of transformers' own within the block."""
    config = model.config
    before, config._attn_implementation = config._attn_implementation, "eager"
    try:
        yield
    finally:
        config._attn_implementation = before
