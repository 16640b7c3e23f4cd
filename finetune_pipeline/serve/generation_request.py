"""What goes into the engine and what comes out: a request, the events of its tokens, a ticket to cancel it.

base = BaseId("77c1…", quantized=False, precision="auto")
GenerationRequest(ModelId(base, adapter="9be0…"), prompt_ids, prefix_ids, max_new_tokens=64)
TokenEvent(1437)
TokenEvent(2, reason="eos")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from finetune_pipeline.config import Precision

SIZES = (1024, 4096)  # upper bounds of the size classes, in tokens of a sequence without prefix: prompt and answer


class EngineFull(Exception):
    """The engine holds `max_requests` requests already."""


class ModelGone(Exception):
    """The model was unloaded after its name was looked up; look it up again."""


@dataclass(frozen=True, slots=True)
class BaseId:
    """A model that takes adapters. `weights` identifies its files (a hash, equal in all tasks): the base model's, or
    those of an artifact with full weights; at a provider, its name there. `quantized`: in 4 bits; `precision` as in
    `serve.precision`."""

    weights: str
    quantized: bool = False
    precision: Precision = "auto"


@dataclass(frozen=True, slots=True)
class ModelId:
    """What answers a request: a base with an adapter (a content hash), or the base alone (None)."""

    base: BaseId
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class DecoderKey:
    """Requests that one decoder computes together: same model, same shared prefix, same class of size. A decoder's
    cache has one length for all slots, that of the longest sequence: a long one among short ones would leave room for a
    few only, or wait until few are left."""

    model: ModelId
    prefix_ids: tuple[int, ...]
    size_class: int

    @property
    def is_long(self) -> bool:
        return self.size_class > 0


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt for one model. `prefix_ids` are the tokens that this task's prompts begin
    with: computed once for all of them; a prompt that begins otherwise is computed in full. `stop` takes the answer's
    ids so far, and ends the answer when it returns True."""

    model: ModelId
    prompt_ids: Sequence[int]
    prefix_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Callable[[Sequence[int]], bool] | None = None

    @property
    def decoder_key(self) -> DecoderKey:
        length = len(self.prefix_ids)
        shares_prefix = len(self.prompt_ids) > length and tuple(self.prompt_ids[:length]) == self.prefix_ids
        tokens = len(self.prompt_ids) - length * shares_prefix + self.max_new_tokens
        prefix = self.prefix_ids if shares_prefix else ()
        return DecoderKey(self.model, prefix, sum(tokens > size for size in SIZES))


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of an answer. `reason` is set on the last one: "eos" (`token` is the end-of-sequence token, no text),
    "stop", "length" or "error" (`token` is -1, `error` is the message)."""

    token: int
    reason: Literal["eos", "stop", "length", "error"] | None = None
    error: str = ""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the engine. `submitted` and `started` (when its computation began) are time.perf_counter()."""

    id: str
    submitted: float
    started: float | None = None

    @property
    def queued(self) -> float:
        """Seconds between submission and start; until now for a request that has not started."""
        return (time.perf_counter() if self.started is None else self.started) - self.submitted
