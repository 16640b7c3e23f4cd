"""The batched decoder: generates answers to many prompts; sequences are added and removed between steps.

    decoder = Decoder(model, eos_ids={2}, prefix_ids=ids_of_the_system_prompt, max_sequences=32)
    decoder.add_request([Request("r1", prompt_ids, max_new_tokens=48)])
    while decoder.running or decoder.waiting:
        for token in decoder.step():          # at most one token per sequence
            print(token.id, token.token, token.finished, token.reason)

Evaluation and endpoint use the same class, so that what is served is what was evaluated.

- `add_request` queues requests at any time. They are added to the batch in order, as soon as there is room.
- `step` is one forward pass: it decodes one token of every running sequence, and prefills new ones, which gives their
  first token. A sequence leaves the batch in the step that finishes it, and its slot is free in the next step.
- With `chunk_tokens`, a longer prompt is prefilled beside the batch in chunks, one a step (a second, short pass), so
  that running sequences do not wait for all of it. One prompt at a time is prefilled in chunks.
- `cancel(ids)` removes requests, queued or running, for clients that disconnected.

Sequences are independent: an answer depends on its request alone, up to rounding (about 1e-6 in fp32, which can only
decide a tie between two tokens). A sampled sequence has its own random generator, seeded by `Request.seed`.

Not thread-safe: one thread calls it. During `step` the model's attention is replaced (inference/attention.py);
afterwards the model is as before and can be used for anything else. The prefix is computed with the adapter that is
active when the decoder is created: step it with the same adapter, and create another decoder for another adapter.

Memory: `max_cached_tokens` bounds slots times tokens of the longest sequence. A token takes 2 x layers x kv heads x
head size numbers (46 kB for SmolLM2-135M in fp32, so the default of 32,768 tokens is at most 1.5 GB). The cache grows
as needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.errors import DataError
from finetune_pipeline.inference.batched_forward import BatchedModel, ChunkedPrefill, DecodeSequence, PrefillSequence
from finetune_pipeline.inference.request import ActiveSequence, Reason, Request, Token
from finetune_pipeline.inference.sampling import SEEDS, choose, generator_of

__all__ = ["Decoder", "Request", "Token"]
CAPACITY_STEP = 64  # tokens; so that the cache is not reallocated for every longer sequence


@dataclass(slots=True)
class _LongPrompt:
    """A sequence whose prompt is prefilled in chunks; `logits` are those after its last chunk."""

    sequence: ActiveSequence
    prefill: ChunkedPrefill
    logits: Any = None


class Decoder:
    """`model`: a transformers causal LM, or a peft model with LoRA layers, in eval mode.

    ModelError, in the constructor or in the first step before any token, when the architecture is unsupported:
    recurrent layers, attention within chunks, attention not through transformers' interface.
    """

    def __init__(
        self,
        model: Any,
        eos_ids: Iterable[int],
        prefix_ids: Sequence[int] | None = None,
        max_sequences: int = 32,
        prefill_tokens: int = 1024,
        max_cached_tokens: int = 32_768,
        chunk_tokens: int | None = None,
    ) -> None:
        """`prefill_tokens`: prompt tokens in one step (a single longer prompt is allowed): more have a higher
        throughput, fewer delay the running sequences less."""
        self._model = BatchedModel(model, prefix_ids or ())
        self._cache = self._model.cache
        self._eos = frozenset(eos_ids)
        self._max_sequences, self._max_cached = max_sequences, max_cached_tokens
        self._prefill_tokens, self._chunk_tokens = prefill_tokens, chunk_tokens
        self._queue: deque[Request] = deque()
        self._long_queue: deque[Request] = deque()
        self._long: _LongPrompt | None = None
        self._batch: list[ActiveSequence] = []
        self.started: list[str] = []
        """Ids of the requests whose prefill began in the last step."""

    @property
    def running(self) -> int:
        """Sequences in the batch, and the one that is prefilled in chunks."""
        return len(self._batch) + (self._long is not None)

    @property
    def waiting(self) -> int:
        """Queued requests."""
        return len(self._queue) + len(self._long_queue)

    def add_request(self, requests: Iterable[Request]) -> None:
        """Queue requests. DataError when one of them is empty or can never fit; then none is queued."""
        requests = list(requests)
        for request in requests:
            self._check(request)
        for request in requests:
            long = self._chunk_tokens is not None and self._own_tokens(request) > self._chunk_tokens
            (self._long_queue if long else self._queue).append(request)

    def cancel(self, ids: Collection[str]) -> None:
        """Remove requests; unknown and finished ids are ignored."""
        self._queue = deque(r for r in self._queue if r.id not in ids)
        self._long_queue = deque(r for r in self._long_queue if r.id not in ids)
        if self._long is not None and self._long.sequence.request.id in ids:
            self._long = None
        self._remove([sequence.request.id in ids for sequence in self._batch])

    def step(self) -> list[Token]:
        """One forward pass; the new token of every sequence that was decoded or prefilled. [] when there is none."""
        prefilling = self._next_from_queue()
        self.started = [sequence.request.id for sequence in prefilling]
        tokens = self._decode_and_prefill(prefilling) if self._batch or prefilling else []
        return tokens + self._prefill_chunk()

    def _decode_and_prefill(self, prefilling: list[ActiveSequence]) -> list[Token]:
        logits = self._model(
            [DecodeSequence(s.answer[-1], s.base, s.own) for s in self._batch],
            [PrefillSequence(s.own_prompt, s.base, [len(s.own_prompt) - 1]) for s in prefilling],
        )
        for sequence in self._batch:
            sequence.own += 1
        for sequence in prefilling:
            sequence.own = len(sequence.own_prompt)
        self._batch.extend(prefilling)
        tokens = [
            self._append(sequence, token)
            for sequence, token in zip(self._batch, choose(logits, self._batch), strict=True)
        ]
        self._remove([token.finished for token in tokens])
        return tokens

    def _prefill_chunk(self) -> list[Token]:
        """Prefill the next chunk of a long prompt. After its last chunk, the sequence is added to the batch as soon as
        a slot is free, with its first token."""
        if self._long is None and self._long_queue:
            sequence = self._activate(self._long_queue.popleft())
            self._long = _LongPrompt(sequence, ChunkedPrefill(sequence.own_prompt, sequence.base))
            self.started.append(sequence.request.id)
        long = self._long
        if long is None or self._chunk_tokens is None:
            return []
        if not long.prefill.complete:
            long.logits = self._model.prefill_chunk(long.prefill, self._chunk_tokens)
        sequence, own = long.sequence, len(long.sequence.own_prompt)
        capacity = self._capacity(sequence.request, own)
        if not long.prefill.complete or not self._fits(len(self._batch) + 1, capacity):
            return []
        self._reserve(len(self._batch) + 1, capacity)
        self._cache.copy_from(long.prefill.cache, len(self._batch), own)
        sequence.own, self._long = own, None
        token = self._append(sequence, choose(long.logits, [sequence])[0])
        if not token.finished:
            self._batch.append(sequence)
        return [token]

    def _check(self, request: Request) -> None:
        if request.seed not in SEEDS:
            raise DataError(f"request {request.id}: the seed {request.seed} is out of range", "use at most 64 bits")
        total = len(request.prompt_ids) + request.max_new_tokens
        limit = min(self._max_cached, self._model.max_tokens)
        if not request.prompt_ids or request.max_new_tokens < 1:
            raise DataError(
                f"request {request.id} has no prompt or no room for an answer", "use at least one token for each"
            )
        if total > limit:
            raise DataError(
                f"request {request.id}: {len(request.prompt_ids)} prompt tokens and {request.max_new_tokens} for the "
                f"answer are more than the limit of {limit}",
                "shorten the prompt, or lower the number of answer tokens",
            )

    def _next_from_queue(self) -> list[ActiveSequence]:
        """Requests to prefill now, in order, within the slots, `prefill_tokens` and the cache. None while a long prompt
        waits for a slot, which it would otherwise never get."""
        sequences: list[ActiveSequence] = []
        tokens, capacity = 0, 0
        if self._long is not None and self._long.prefill.complete:
            return sequences
        while self._queue:
            own = self._own_tokens(self._queue[0])
            needed = max(capacity, self._capacity(self._queue[0], own))
            slots = len(self._batch) + len(sequences) + 1
            if (sequences and tokens + own > self._prefill_tokens) or not self._fits(slots, needed):
                break
            sequences.append(self._activate(self._queue.popleft()))
            tokens, capacity = tokens + own, needed
        if sequences:
            self._reserve(len(self._batch) + len(sequences), capacity)
        return sequences

    def _activate(self, request: Request) -> ActiveSequence:
        return ActiveSequence(request, self._model.base(request.prompt_ids), generator_of(request))

    def _own_tokens(self, request: Request) -> int:
        """Tokens of the prompt that are not in the shared prefix."""
        return len(request.prompt_ids) - self._model.base(request.prompt_ids)

    def _capacity(self, request: Request, own: int) -> int:
        """Tokens that every slot needs when the request is in the batch."""
        current = self._cache.capacity if self._batch else 0
        return -(-max(current, own + request.max_new_tokens) // CAPACITY_STEP) * CAPACITY_STEP

    def _fits(self, slots: int, capacity: int) -> bool:
        return slots <= self._max_sequences and (slots == 1 or slots * capacity <= self._max_cached)

    def _reserve(self, slots: int, capacity: int) -> None:
        """Reserve a power of two of slots, within the limits, so that the cache is seldom reallocated."""
        room = min(self._max_sequences, 1 << (slots - 1).bit_length(), max(slots, self._max_cached // capacity))
        self._cache.reserve(room, capacity, used=len(self._batch))

    def _append(self, sequence: ActiveSequence, token: int | Exception) -> Token:
        """Add a token to the answer. An exception of sampling or of the stop rule finishes this sequence alone."""
        id = sequence.request.id
        if isinstance(token, Exception):
            return Token(id, -1, True, "error", str(token))
        sequence.answer.append(token)
        try:
            reason = self._finish_reason(sequence, token)
        except Exception as error:  # noqa: BLE001 - the stop rule is the caller's code
            return Token(id, -1, True, "error", f"the stop rule failed: {error}")
        return Token(id, token, reason is not None, reason)

    def _finish_reason(self, sequence: ActiveSequence, token: int) -> Reason | None:
        request = sequence.request
        if token in self._eos:
            return "eos"
        if request.stop is not None and request.stop(sequence.answer):
            return "stop"
        return "length" if len(sequence.answer) >= request.max_new_tokens else None

    def _remove(self, finished: list[bool]) -> None:
        """Remove finished sequences; the last sequence moves into a slot that became free."""
        for slot in reversed([i for i, done in enumerate(finished) if done]):
            last = self._batch.pop()
            if slot < len(self._batch):
                self._cache.move(len(self._batch), slot, last.own)
                self._batch[slot] = last
