"""The batched decoder: answers many prompts with a causal language model, rows joining and leaving between steps.

It is the same class in evaluation and behind the endpoint, so that what is served is what was evaluated.

    decoder = Decoder(model, eos_ids={2}, prefix_ids=ids_of_the_system_prompt, max_rows=32)
    decoder.add_request([Request("r1", prompt_ids, max_new_tokens=48)])
    while decoder.running or decoder.waiting:
        for token in decoder.step():          # at most one token a row
            print(token.id, token.token, token.finished, token.reason)

- `add_request` queues rows at any time, also between steps; rows join in the order they came, as room is found.
- `step` is one forward pass: one new token for each running row, and the prompt and first token of those that join.
  A row leaves the batch in the step that ends it, and its place is free in the next.
- With `piece_tokens`, a longer prompt is read beside the others, so many tokens a step (a second, short pass): neither
  do those that run wait for the whole of it, nor does it wait for them. One such prompt is read at a time.
- `prompt_ids` is always the whole prompt. Where it begins with `prefix_ids`, those tokens are taken from the cache.
- `cancel(ids)` takes rows out, queued or running: for clients that hung up.

Rows do not touch each other: a row's answer depends on its request alone, up to rounding (about 1e-6 in fp32, which
can flip a tie between two tokens, no more). A sampled row has a random generator of its own, seeded by `Request.seed`.

Not thread-safe: one thread steps. Within `step` the model's attention is switched (`inference/attention.py`);
afterwards the
model is as before, and may be used for anything else between steps. The prefix was computed with the adapter that was
active when the decoder was made: step it with the same adapter, and make another decoder for another adapter.

Memory: `max_cached_tokens` bounds rows times tokens of the longest row; one token is 2 x layers x kv heads x head size
numbers (46 kB for SmolLM2-135M in fp32, so that the default of 32,768 tokens is at most 1.5 GB; it grows with need).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from finetune_pipeline.errors import DataError
from finetune_pipeline.inference.batched_forward import BatchedModel, ChunkedPrefill, DecodeSequence, PrefillSequence
from finetune_pipeline.inference.sampling import SEEDS, choose, generator_of

if TYPE_CHECKING:
    import torch

Reason = Literal["eos", "stop", "length", "error"]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to answer.

    temperature 0 is greedy; otherwise tokens are drawn from the smallest set that holds `top_p` of the probability.
    `allowed(answer ids so far)` gives the token ids that may come next (None: all), for constrained decoding.
    `stop(answer ids so far)` ends the row when it gives True (see `inference/stopping.py`).
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
    """One new token of a row. `reason` is set when it is the last: "eos" (this token is the end mark, no text), "stop"
    (the request's stop rule), "length" (`max_new_tokens` reached), "error" (no token could be chosen, for the reason in
    `error`; the other rows of the batch are not affected, and `token` is -1)."""

    id: str
    token: int
    finished: bool
    reason: Reason | None = None
    error: str = ""


@dataclass(slots=True)
class _Row:
    request: Request
    own: int
    """Tokens of this row in its own place of the cache, so without the shared prefix."""
    base: int
    """Tokens taken from the shared prefix: all of it, or none."""
    generator: torch.Generator | None
    answer: list[int] = field(default_factory=list)

    @property
    def fresh(self) -> int:
        """Tokens of the prompt that are not in the prefix."""
        return len(self.request.prompt_ids) - self.base


@dataclass(slots=True)
class _PrefillRow:
    """A row whose prompt is read in pieces; `logits` are those after its last piece so far."""

    row: _Row
    reading: ChunkedPrefill
    logits: Any = None


class Decoder:
    """See the module's docstring. `model` is a transformers causal LM or a peft model with LoRA layers, in eval mode.

    ModelError when the architecture cannot be decoded by rows (attention not through transformers' interface, recurrent
    layers, soft caps); noticed in the first step, before any token is given.
    """

    def __init__(
        self,
        model: Any,
        eos_ids: Iterable[int],
        prefix_ids: Sequence[int] | None = None,
        max_rows: int = 32,
        step_tokens: int = 1024,
        max_cached_tokens: int = 32_768,
        piece_tokens: int | None = None,
    ) -> None:
        """`step_tokens`: prompts join a step until they have this many tokens together (one always may): more is
        faster over all, less lets running rows go on sooner."""
        self._model = BatchedModel(model, prefix_ids or ())
        self._cache = self._model.cache
        self._eos = frozenset(eos_ids)
        self._max_rows, self._step_tokens, self._max_cached = max_rows, step_tokens, max_cached_tokens
        self._piece = piece_tokens
        self._queue: deque[Request] = deque()
        self._long: deque[Request] = deque()
        self._reading: _PrefillRow | None = None
        self._rows: list[_Row] = []
        self.joined: list[str] = []
        """Requests whose computation began in the last step."""

    @property
    def running(self) -> int:
        """Rows in the batch, and the one whose prompt is being read."""
        return len(self._rows) + (self._reading is not None)

    @property
    def waiting(self) -> int:
        """Rows admitted that have not joined yet."""
        return len(self._queue) + len(self._long)

    def add_request(self, requests: Iterable[Request]) -> None:
        """Queue rows. DataError for one that is empty or can never fit; then none of them is queued."""
        requests = list(requests)
        for request in requests:
            self._check(request)
        for request in requests:
            long = self._piece is not None and self._fresh(request) > self._piece
            (self._long if long else self._queue).append(request)

    def cancel(self, ids: Collection[str]) -> None:
        """Take rows out; ids that are not there (any more) are ignored."""
        self._queue = deque(r for r in self._queue if r.id not in ids)
        self._long = deque(r for r in self._long if r.id not in ids)
        if self._reading is not None and self._reading.row.request.id in ids:
            self._reading = None
        self._leave([row.request.id in ids for row in self._rows])

    def step(self) -> list[Token]:
        """One forward pass; the new token of every row that ran or joined. Empty when nothing is to do."""
        joining = self._joining()
        self.joined = [row.request.id for row in joining]
        tokens = self._run(joining) if self._rows or joining else []
        return tokens + self._read_on()

    def _run(self, joining: list[_Row]) -> list[Token]:
        logits = self._model(
            [DecodeSequence(row.answer[-1], row.base, row.own) for row in self._rows],
            [PrefillSequence(row.request.prompt_ids[row.base :], row.base, [row.fresh - 1]) for row in joining],
        )
        for row in self._rows:
            row.own += 1
        for row in joining:
            row.own = row.fresh
        self._rows.extend(joining)
        tokens = [self._take(row, token) for row, token in zip(self._rows, choose(logits, self._rows), strict=True)]
        self._leave([token.finished for token in tokens])
        return tokens

    def _read_on(self) -> list[Token]:
        """The next piece of a long prompt. After its last piece the row takes a place, as soon as there is one, and has
        its first token."""
        if self._reading is None and self._long:
            request = self._long.popleft()
            base = self._model.base(request.prompt_ids)
            row = _Row(request, 0, base, generator_of(request))
            self._reading = _PrefillRow(row, ChunkedPrefill(request.prompt_ids[base:], base))
            self.joined.append(request.id)
        read = self._reading
        if read is None or self._piece is None:
            return []
        if not read.reading.complete:
            read.logits = self._model.read(read.reading, self._piece)
        need = self._need(read.row.request, read.row.fresh)
        if not read.reading.complete or not self._fits(len(self._rows) + 1, need):
            return []
        self._reserve(len(self._rows) + 1, need)
        self._cache.adopt(len(self._rows), read.reading.cache, read.row.fresh)
        read.row.own, self._reading = read.row.fresh, None
        token = self._take(read.row, choose(read.logits, [read.row])[0])
        if not token.finished:
            self._rows.append(read.row)
        return [token]

    def _check(self, request: Request) -> None:
        if request.seed not in SEEDS:
            raise DataError(f"request {request.id}: the seed {request.seed} is out of range", "give 64 bits at most")
        total = len(request.prompt_ids) + request.max_new_tokens
        limit = min(self._max_cached, self._model.context or self._max_cached)
        if not request.prompt_ids or request.max_new_tokens < 1:
            raise DataError(
                f"request {request.id} has no prompt or no room for an answer", "give at least one token each"
            )
        if total > limit:
            raise DataError(
                f"request {request.id}: {len(request.prompt_ids)} prompt tokens and {request.max_new_tokens} for the "
                f"answer are more than the {limit} that fit",
                "shorten the prompt, or ask for fewer answer tokens",
            )

    def _joining(self) -> list[_Row]:
        """Rows from the queue, in order, as long as places, this step's tokens and the cache allow. None while a prompt
        that was read in pieces waits for its place: it would wait for ever."""
        joining: list[_Row] = []
        tokens, capacity = 0, 0
        if self._reading is not None and self._reading.reading.complete:
            return joining
        while self._queue:
            request = self._queue[0]
            fresh = self._fresh(request)
            need = max(capacity, self._need(request, fresh))
            places = len(self._rows) + len(joining) + 1
            if (joining and tokens + fresh > self._step_tokens) or not self._fits(places, need):
                break
            base = len(request.prompt_ids) - fresh
            joining.append(_Row(self._queue.popleft(), 0, base, generator_of(request)))
            tokens, capacity = tokens + fresh, need
        if joining:
            self._reserve(len(self._rows) + len(joining), capacity)
        return joining

    def _fresh(self, request: Request) -> int:
        """Tokens of the prompt that are not in the prefix."""
        return len(request.prompt_ids) - self._model.base(request.prompt_ids)

    def _need(self, request: Request, fresh: int) -> int:
        """Tokens that each place of the cache needs, once this row has one."""
        capacity = self._cache.capacity if self._rows else 0
        return -(-max(capacity, fresh + request.max_new_tokens) // 64) * 64

    def _fits(self, places: int, need: int) -> bool:
        return places <= self._max_rows and (places == 1 or places * need <= self._max_cached)

    def _reserve(self, places: int, capacity: int) -> None:
        room = min(self._max_rows, 1 << (places - 1).bit_length(), max(places, self._max_cached // capacity))
        self._cache.reserve(room, capacity, used=len(self._rows))

    def _take(self, row: _Row, token: int | Exception) -> Token:
        if isinstance(token, Exception):
            return Token(row.request.id, -1, True, "error", str(token))
        row.answer.append(token)
        try:
            reason = self._ending(row, token)
        except Exception as error:  # noqa: BLE001 - a stop rule is the request's own; the row ends with its message
            return Token(row.request.id, -1, True, "error", f"the stop rule failed: {error}")
        return Token(row.request.id, token, reason is not None, reason)

    def _ending(self, row: _Row, token: int) -> Reason | None:
        if token in self._eos:
            return "eos"
        if row.request.stop is not None and row.request.stop(row.answer):
            return "stop"
        return "length" if len(row.answer) >= row.request.max_new_tokens else None

    def _leave(self, ended: list[bool]) -> None:
        """Take ended rows out; the last row moves into the place that became free."""
        for place in reversed([i for i, gone in enumerate(ended) if gone]):
            last = self._rows.pop()
            if place < len(self._rows):
                self._cache.move(len(self._rows), place, last.own)
                self._rows[place] = last
