"""The next token of each sequence: the most probable one, or one sampled by the sequence's own random generator.

    choose(logits, sequences)     # [3171, 28, DataError("request r7: no token is allowed next")]

Logits are divided by the temperature, and tokens sampled from the smallest set with `top_p` of the probability
(Holtzman et al., The curious case of neural text degeneration, 2020). A sequence's token, or failure, depends on its
request alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from finetune_pipeline.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from finetune_pipeline.inference.request import ActiveSequence, Request

SEEDS = range(-(2**63), 2**63)  # the range of torch.Generator.manual_seed
MIN_TEMPERATURE = 1e-4  # below it the probability of the most probable token rounds to 1


def generator_of(request: Request) -> torch.Generator | None:
    """A generator with the request's seed; None for greedy decoding."""
    import torch

    return torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None


def choose(logits: Tensor, sequences: Sequence[ActiveSequence]) -> list[int | Exception]:
    """The next token id of every sequence, among the allowed ones. `logits`: [sequences, vocabulary].

    A sequence whose token cannot be chosen has the exception in its place, so that the others can continue.
    """
    chosen: list[int | Exception] = list(logits.argmax(dim=-1).tolist())
    for i, sequence in enumerate(sequences):
        if sequence.request.allowed is None and sequence.generator is None:
            continue
        try:
            chosen[i] = _choose_one(logits[i], sequence)
        except Exception as error:  # noqa: BLE001 - the sequence's own error
            chosen[i] = error
    return chosen


def _choose_one(logits: Tensor, sequence: ActiveSequence) -> int:
    import torch

    request = sequence.request
    scores = logits.float().cpu()
    allowed = request.allowed(sequence.answer) if request.allowed else None
    if allowed is not None:
        if not allowed:
            raise DataError(
                f"request {request.id}: no token is allowed next",
                "fix the constraint: after these tokens it allows none",
            )
        forbidden = torch.ones(scores.shape, dtype=torch.bool)
        forbidden[list(allowed)] = False
        scores = scores.masked_fill(forbidden, float("-inf"))
    if sequence.generator is None:
        return int(scores.argmax())
    scaled = (scores - scores.max()) / max(
        request.temperature, MIN_TEMPERATURE
    )  # the maximum is 0, so that none is infinite
    probabilities, order = torch.softmax(scaled, dim=-1).sort(descending=True)
    kept = probabilities.cumsum(0) - probabilities < request.top_p  # includes the token that crosses top_p
    kept[0] = True  # also where top_p underflows to 0
    return int(order[torch.multinomial(probabilities * kept, 1, generator=sequence.generator)])
