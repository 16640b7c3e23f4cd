"""The next token of each row: the most probable one, or one drawn by the row's own random generator.

    choose(logits, rows)          # [3171, 28, DataError("request r7: no token is allowed next")]

Tokens are drawn from the smallest set that holds `top_p` of the probability, after division by the temperature. A row
depends on its own request alone, its failure too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from finetune_pipeline.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from finetune_pipeline.inference.decoder import Request

SEEDS = range(-(2**63), 2**63)  # what a random generator of torch takes
LEAST_TEMPERATURE = 1e-4  # below it the most probable token has all the probability a float can show


class Row(Protocol):
    """A row as far as its next token depends on it: `answer` are its token ids so far."""

    request: Request
    answer: list[int]
    generator: torch.Generator | None


def generator_of(request: Request) -> torch.Generator | None:
    import torch

    return torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None


def choose(logits: Tensor, rows: Sequence[Row]) -> list[int | Exception]:
    """The next token of every row: the most probable of the allowed ones, or one drawn by the row's own generator.
    Where one row's token cannot be chosen, its place holds the exception: the rows beside it go on."""
    chosen: list[int | Exception] = list(logits.argmax(dim=-1).tolist())
    for i, row in enumerate(rows):
        if row.request.allowed is None and row.generator is None:
            continue
        try:
            chosen[i] = _choose_one(logits[i], row)
        except Exception as error:  # noqa: BLE001 - handed on as the row's own error
            chosen[i] = error
    return chosen


def _choose_one(logits: Tensor, row: Row) -> int:
    import torch

    request = row.request
    scores = logits.float().cpu()
    allowed = request.allowed(row.answer) if request.allowed else None
    if allowed is not None:
        if not allowed:
            raise DataError(f"request {request.id}: no token is allowed next", "fix the constraint: it has a dead end")
        barred = torch.ones(scores.shape, dtype=torch.bool)
        barred[list(allowed)] = False
        scores = scores.masked_fill(barred, float("-inf"))
    if row.generator is None:
        return int(scores.argmax())
    scaled = (scores - scores.max()) / max(request.temperature, LEAST_TEMPERATURE)  # the best is 0: never infinite
    chances, order = torch.softmax(scaled, dim=-1).sort(descending=True)
    kept = chances.cumsum(0) - chances < request.top_p  # the token that crosses top_p belongs to the set
    kept[0] = True  # also where top_p is smaller than a float can show
    return int(order[torch.multinomial(chances * kept, 1, generator=row.generator)])
