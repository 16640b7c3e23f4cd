"""What the decoder gets and returns: a request, and its new tokens, one at a time.

Request("r1", prompt_ids, max_new_tokens=48)
Token("r1", 3171, finished=False)
Token("r1", 2, finished=True, reason="eos")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Reason = Literal["eos", "stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to complete. `prompt_ids` is the whole prompt, also where it begins with the shared prefix.

    Temperature 0 is greedy; otherwise tokens are sampled from the smallest set with `top_p` of the probability, by a
    generator with `seed`. `allowed(answer ids so far)` returns the ids that may come next (None: all), for constrained
    decoding. `stop(answer ids so far)` ends the sequence when it returns true (see `inference/stopping.py`).
    """

    id: str
    prompt_ids: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    allowed: Callable[[Sequence[int]], Collection[int] | None] | None = None
    stop: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One new token of a sequence. The last one has a `reason`: "eos" (it is an end-of-turn token, not text), "stop"
    (the request's stop rule), "length" (`max_new_tokens` reached), or "error" (no token could be chosen; `error` says
    why, `token` is -1, and the other sequences of the batch continue)."""

    id: str
    token: int
    finished: bool
    reason: Reason | None = None
    error: str = ""


@dataclass(slots=True)
class ActiveSequence:
    """A request that is being prefilled or decoded. `base`: tokens taken from the shared prefix, all of it or none;
    `own`: its own tokens in the cache; `answer`: the new tokens so far."""

    request: Request
    base: int
    generator: torch.Generator | None
    own: int = 0
    answer: list[int] = field(default_factory=list)

    @property
    def own_prompt(self) -> Sequence[int]:
        """The tokens of the prompt that are not in the shared prefix."""
        return self.request.prompt_ids[self.base :]
