"""One base model in this process, several adapters on it, and one thread that computes for all of them.

    engine = Engine(folder_of_the_base)                      # loads the weights; seconds
    engine.load("9be0…", adapter_folder)                     # while requests run, between two steps
    with engine.lease("9be0…"):                              # the adapter stays as long as somebody uses it
        ticket = engine.submit(GenerationRequest("9be0…", prompt_ids, prefix_ids, limit), sink)
    engine.unload("9be0…")                                   # when the last lease is given back

The thread steps one `Decoder` (inference/decoder.py, the evaluation's own) per adapter and class of size in turn, so
that long rows keep nobody waiting: requests join and leave between steps. It owns the model: loading, unloading and
computing happen there and nowhere else. LoRA layers stay unmerged; `None` is the base without adapter. What is certain:
a request is computed by one adapter from its first token to its last, and answers do not depend on who asks at the same
time.

Why not transformers' own continuous batching: it holds one adapter for all requests, and what it returns was wrong in
ways that its issues describe; the evaluation's decoder makes "served equals evaluated" true by construction.

What it is not: routing of model names (supervisor.py), text (detokenizer.py) or HTTP (app.py). It is longer than most
files
here because the queue, the leases and the thread share one lock, and are checked against each other more easily so.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finetune_pipeline.errors import ServingError
from finetune_pipeline.inference.adapters import Adapters

if TYPE_CHECKING:
    from finetune_pipeline.inference.decoder import Decoder, Request

T = TypeVar("T")
SIZES = (1024, 4096)  # own tokens of a row, prompt and answer: shorter and longer rows are computed apart
MAX_ROWS = 64  # computed together per adapter; each row more costs less than the one before
STEP_TOKENS = 256  # of prompts that join a step: more would let those who already get their answer wait
PIECE_TOKENS = 512  # a longer prompt is read in pieces, so that the others get their tokens in between
CACHED_TOKENS = 32_768  # of all rows of a lane together: bounds the memory
MAX_REQUESTS = 64  # running and waiting together; more are told to come back, since they would wait for minutes
log = logging.getLogger("finetune.engine")


class EngineFull(Exception):
    """As many requests as may wait are waiting."""


class AdapterGone(Exception):
    """The adapter was unloaded since its name was looked up; look it up again."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt for one adapter (None: the base). `prefix_ids` is what this task's prompts begin with: computed once
    for all of them; a prompt that begins otherwise is computed as a whole. `stop` gets the answer's ids so far."""

    adapter: str | None
    prompt_ids: Sequence[int]
    prefix_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Callable[[Sequence[int]], bool] | None = None


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of an answer. `reason` ends it: "eos" (`token` is the end mark, no text), "stop", "length", "error"."""

    token: int
    reason: str | None = None
    error: str = ""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request in the engine. Times are time.perf_counter(); `joined` is when its computation began."""

    name: str
    submitted: float
    joined: float | None = None

    @property
    def queued(self) -> float:
        """Seconds it waited for a place, so far or in all."""
        return (time.perf_counter() if self.joined is None else self.joined) - self.submitted


Sink = Callable[[TokenEvent], None]
DecoderKey = tuple[str | None, tuple[int, ...], int]
"""Rows that one decoder computes: adapter, shared prefix, class of size. The rectangle of a decoder's cache is as long
as its longest row: among short rows, one long row would leave room for a few only, or wait until hardly any is left."""


class Engine:
    """See the module's docstring. Every method may be called from any thread."""

    def __init__(self, base: Path, max_rows: int = MAX_ROWS, max_requests: int = MAX_REQUESTS) -> None:
        """Load the base model in the folder `base`. ModelError when it cannot be loaded."""
        from finetune_pipeline.inference.loading import load

        loaded = load(base)
        self._model, self.tokenizer, self._eos = loaded.model, loaded.tokenizer, loaded.eos_ids
        self._adapters = Adapters(self._model)
        stated = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or CACHED_TOKENS
        self.context = min(int(stated), CACHED_TOKENS)
        self._max_rows, self._max_requests = max_rows, max_requests
        self._loaded: set[str] = set()
        self._leases: Counter[str] = Counter()
        self._lanes: dict[DecoderKey, Decoder] = {}
        self._sinks: dict[str, tuple[DecoderKey, Sink, Ticket]] = {}
        self._inbox: deque[tuple[DecoderKey, Request]] = deque()
        self._cancelled: set[str] = set()
        self._calls: deque[Callable[[], None]] = deque()
        self._leaving: set[str] = set()
        self._names = itertools.count()
        self.steps = 0  # forward passes since the start: whoever waits sees by them that work goes on
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # for everybody ------------------------------------------------------------------------------------------

    @property
    def busy(self) -> tuple[int, int]:
        """Requests that are running, and requests that wait for a place."""
        with self._wake:
            lanes = list(self._lanes.values())
            return sum(decoder_key.running for decoder_key in lanes), len(self._inbox) + sum(
                decoder_key.waiting for decoder_key in lanes
            )

    @property
    def loaded(self) -> frozenset[str]:
        with self._wake:
            return frozenset(self._loaded)

    def load(self, adapter: str, folder: Path) -> None:
        """Put the adapter in `folder` on the model, under its content hash. StorageError when it does not fit."""
        self._call(lambda: self._load(adapter, folder))

    def unload(self, adapter: str) -> None:
        """Take the adapter off as soon as nobody leases it. Returns at once; no new lease is given."""
        with self._wake:
            self._loaded.discard(adapter)
            if self._leases[adapter] == 0:
                self._calls.append(lambda: self._unload(adapter))
                self._wake.notify()
            else:
                self._leaving.add(adapter)

    @contextmanager
    def lease(self, adapter: str | None) -> Iterator[None]:
        """Keep the adapter on the model within the block. AdapterGone when it is not there any more."""
        if adapter is None:
            yield
            return
        with self._wake:
            if adapter not in self._loaded:
                raise AdapterGone(adapter)
            self._leases[adapter] += 1
        try:
            yield
        finally:
            with self._wake:
                self._leases[adapter] -= 1
                if self._leases[adapter] == 0 and adapter in self._leaving:
                    self._leaving.discard(adapter)
                    self._calls.append(lambda: self._unload(adapter))
                    self._wake.notify()

    def submit(self, ask: GenerationRequest, sink: Sink) -> Ticket:
        """Queue a prompt; `sink` gets its pieces on the engine's thread, and has to return at once. Gives the ticket
        that `cancel` takes. EngineFull when too many wait."""
        from finetune_pipeline.inference.decoder import Request

        shares = (
            len(ask.prompt_ids) > len(ask.prefix_ids) and tuple(ask.prompt_ids[: len(ask.prefix_ids)]) == ask.prefix_ids
        )
        own = len(ask.prompt_ids) - shares * len(ask.prefix_ids) + ask.max_new_tokens
        decoder_key: DecoderKey = (ask.adapter, ask.prefix_ids if shares else (), sum(own > size for size in SIZES))
        with self._wake:
            if self._stopping or len(self._sinks) >= self._max_requests:
                raise EngineFull
            ticket = Ticket(f"r{next(self._names)}", time.perf_counter())
            sampling = (ask.max_new_tokens, ask.temperature, ask.top_p, ask.seed)
            self._inbox.append((decoder_key, Request(ticket.name, ask.prompt_ids, *sampling, stop=ask.stop)))
            self._sinks[ticket.name] = decoder_key, sink, ticket
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Stop computing for this ticket; harmless when it has ended."""
        with self._wake:
            if self._sinks.pop(ticket.name, None) is not None:  # its place is free at once
                self._cancelled.add(ticket.name)
                self._wake.notify()

    def give_up(self) -> None:
        """Take nothing more, and give every request under way an error, at once: whatever the thread computes now."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._fail_all("the endpoint is stopping")

    def stop(self, timeout: float = 2.0) -> None:
        """`give_up`, and end the thread after its present step."""
        self.give_up()
        self._thread.join(timeout)

    @property
    def computes(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    # the thread ---------------------------------------------------------------------------------------------

    def _call(self, what: Callable[[], T]) -> T:
        """Run `what` on the engine's thread, between two steps."""
        done: Future[T] = Future()

        def call() -> None:
            try:
                done.set_result(what())
            except Exception as error:  # noqa: BLE001 - handed to the caller, who waits for it
                done.set_exception(error)

        with self._wake:
            if self._stopping:
                raise ServingError("the engine is stopping", "start the endpoint again")
            self._calls.append(call)
            self._wake.notify()
        return done.result()

    def _run(self) -> None:
        import torch

        with torch.inference_mode():
            while not self._stopping:
                try:
                    if self._next():
                        for decoder_key in list(self._lanes):
                            self._step(decoder_key)
                except Exception as error:  # whatever it was: begin anew rather than leave everybody waiting
                    log.exception("the engine failed, and begins anew")
                    with self._wake:
                        self._lanes.clear()
                    self._fail_all(str(error))

    def _fail_all(self, why: str) -> None:
        with self._wake:
            tickets = list(self._sinks)
        for ticket in tickets:
            self._end(ticket, TokenEvent(-1, "error", why))

    def _next(self) -> bool:
        """Wait for something to do; take in what came since the last round. False: stop."""
        with self._wake:
            while not (self._stopping or self._calls or self._inbox or self._cancelled or self._working()):
                self._wake.wait()
            calls, self._calls = self._calls, deque()
            inbox, self._inbox = self._inbox, deque()
            cancelled, self._cancelled = self._cancelled, set()
        if self._stopping:
            return False
        for call in calls:
            call()
        for decoder in self._lanes.values():
            if cancelled:
                decoder.cancel(cancelled)
        for decoder_key, request in inbox:
            if request.id not in cancelled:
                self._add_requests(decoder_key, request)
        return True

    def _working(self) -> bool:
        return any(decoder_key.running or decoder_key.waiting for decoder_key in self._lanes.values())

    def _add_requests(self, decoder_key: DecoderKey, request: Request) -> None:
        from finetune_pipeline.inference.decoder import Decoder

        if request.id not in self._sinks:  # it has failed with its lane in the meantime
            return
        try:
            if decoder_key not in self._lanes:
                self._adapters.activate(decoder_key[0])
                decoder = Decoder(
                    self._model, self._eos, decoder_key[1], self._max_rows, STEP_TOKENS, CACHED_TOKENS, PIECE_TOKENS
                )
                with self._wake:
                    self._lanes[decoder_key] = decoder
            self._lanes[decoder_key].add_request([request])
        except Exception as error:  # the request gets it; the thread has to live for the others
            log.exception("a request could not be started")
            self._end(request.id, TokenEvent(-1, "error", str(error)))

    def _step(self, decoder_key: DecoderKey) -> None:
        decoder = self._lanes[decoder_key]
        if not (decoder.running or decoder.waiting):
            return
        try:
            began = time.perf_counter()
            self._adapters.activate(decoder_key[0])
            tokens = decoder.step()
            self.steps += 1
        except Exception as error:  # out of memory, say: these rows get it, the thread lives for the others
            log.exception("a step of %s failed", decoder_key[0] or "the base model")
            with self._wake:
                del self._lanes[decoder_key]
                failed = [name for name, (where, _, _) in self._sinks.items() if where == decoder_key]
            for ticket in failed:
                self._end(ticket, TokenEvent(-1, "error", str(error)))
            return
        if decoder_key[2] and not (decoder.running or decoder.waiting):
            with self._wake:
                del self._lanes[decoder_key]  # the cache of long rows is large, and they are rare
        for name in decoder.started:
            if (known := self._sinks.get(name)) is not None:
                known[2].joined = began
        for token in tokens:
            if token.finished:
                self._end(token.id, TokenEvent(token.token, token.reason, token.error))
            elif (waiting := self._sinks.get(token.id)) is not None:
                waiting[1](TokenEvent(token.token))

    def _end(self, ticket: str, piece: TokenEvent) -> None:
        with self._wake:
            known = self._sinks.pop(ticket, None)
        if known is not None:
            known[1](piece)

    # adapters, on the thread --------------------------------------------------------------------------------

    def _load(self, adapter: str, folder: Path) -> None:
        self._adapters.load(adapter, folder)
        with self._wake:
            self._loaded.add(adapter)
            self._leaving.discard(adapter)

    def _unload(self, adapter: str) -> None:
        with self._wake:
            if adapter in self._loaded or self._leases[adapter]:
                return  # it was wanted again in the meantime
            for decoder_key in [decoder_key for decoder_key in self._lanes if decoder_key[0] == adapter]:
                del self._lanes[decoder_key]
        self._adapters.unload(adapter)
