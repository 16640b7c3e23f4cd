"""The inference engine: the models of this process, LoRA adapters on them, continuous batching.

    engine = Engine()
    base, tuned = BaseId("77c1…"), ModelId(BaseId("77c1…"), "9be0…")
    engine.models.load_base(base, base_folder)               # reads the weights; seconds, while requests run
    engine.models.load(tuned, adapter_folder)                # between two steps
    with engine.models.lease(tuned):                         # the model stays loaded within the block
        ticket = engine.submit(GenerationRequest(tuned, prompt_ids, prefix_ids, max_new_tokens), sink)
    engine.models.unload(tuned)                              # after the last lease is released

Versions of different kinds live side by side: adapters on one base, an adapter on the base in 4 bits, full weights
(loaded_models.py). One thread owns all models: computing, adding and removing happen there only. It steps the decoders
of decoder_pool.py (inference/decoder.py, the evaluation's own) in turn, so that long requests do not delay short ones;
requests are added and end between steps. LoRA weights stay unmerged. A request is computed by one model from its first
token to its last, and an answer does not depend on other requests.

Why not transformers' continuous batching: it holds one adapter for all requests, and returned wrong results in cases
that its issues describe; the evaluation's decoder makes "served equals evaluated" true by construction.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from finetune_pipeline.errors import ServingError
from finetune_pipeline.serve.generation_request import DecoderKey, EngineFull, GenerationRequest, Ticket, TokenEvent
from finetune_pipeline.serve.loaded_models import LoadedModels
from finetune_pipeline.serve.model_pool import ModelPool

if TYPE_CHECKING:
    from finetune_pipeline.inference.decoder import Request, Token

T = TypeVar("T")
Sink = Callable[[TokenEvent], None]
MAX_SEQUENCES = 64  # computed together per decoder; the cost of each falls with their number
MAX_REQUESTS = 64  # running and waiting together; more are refused, since they would wait for minutes
log = logging.getLogger("finetune.engine")


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """A request that has not ended: the decoder that computes it, where its events go, its ticket."""

    key: DecoderKey
    sink: Sink
    ticket: Ticket


class Engine:
    """See the module's docstring. Every method may be called from any thread."""

    def __init__(self, max_sequences: int = MAX_SEQUENCES, max_requests: int = MAX_REQUESTS) -> None:
        self._pool = ModelPool(max_sequences)
        self._max_requests = max_requests
        self._pending: dict[str, _Pending] = {}
        self._inbox: deque[tuple[DecoderKey, Request]] = deque()
        self._canceled: set[str] = set()
        self._calls: deque[Callable[[], None]] = deque()
        self._ids = itertools.count()
        self.steps = 0  # forward passes since the start: shows a waiting client that work goes on
        self._wake = threading.Condition()
        self._stopping = False
        self.models = LoadedModels(self._pool, self._wake, self._on_thread)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)  # starts with the first call

    # from any thread ----------------------------------------------------------------------------------------

    @property
    def busy(self) -> tuple[int, int]:
        """How many requests run, and how many wait for a slot."""
        with self._wake:
            running, waiting = self._pool.counts
            return running, waiting + len(self._inbox)

    def submit(self, request: GenerationRequest, sink: Sink) -> Ticket:
        """Queue a request; `sink` is called with its events on the engine's thread, and has to return at once. Returns
        the ticket that `cancel` takes. EngineFull when `max_requests` are running or waiting."""
        from finetune_pipeline.inference.decoder import Request

        key = request.decoder_key
        with self._wake:
            if self._stopping or len(self._pending) >= self._max_requests:
                raise EngineFull
            ticket = Ticket(f"r{next(self._ids)}", time.perf_counter())
            sampling = (request.max_new_tokens, request.temperature, request.top_p, request.seed)
            self._inbox.append((key, Request(ticket.id, request.prompt_ids, *sampling, stop=request.stop)))
            self._pending[ticket.id] = _Pending(key, sink, ticket)
            self._wake.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End the request without an event; no effect when it has ended."""
        with self._wake:
            if self._pending.pop(ticket.id, None) is not None:  # it counts no more towards max_requests
                self._canceled.add(ticket.id)
                self._wake.notify()

    def abort(self) -> None:
        """Accept no more requests, and end all with an error event at once, without waiting for the present step."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._fail_all("the endpoint is stopping")

    def stop(self, timeout: float = 2.0) -> None:
        """`abort`, and end the thread after its present step; waits up to `timeout` seconds for that."""
        self.abort()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    @property
    def is_alive(self) -> bool:
        """Whether the thread has not ended."""
        return self._thread.is_alive()

    def _on_thread(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the engine's thread, between two steps. ServingError when the engine is stopping; then
        nothing waits for it any more."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - raised again in the calling thread
                future.set_exception(error)

        with self._wake:
            if self._stopping:
                future.set_exception(ServingError("the engine is stopping", "start the endpoint again"))
            else:
                self._calls.append(call)
                if self._thread.ident is None:
                    self._thread.start()
                self._wake.notify()
        return future

    def _fail_all(self, message: str) -> None:
        with self._wake:
            ids = list(self._pending)
        for id_ in ids:
            self._end(id_, TokenEvent(-1, "error", message))

    def _end(self, id_: str, event: TokenEvent) -> None:
        with self._wake:
            pending = self._pending.pop(id_, None)
        if pending is not None:
            pending.sink(event)

    # on the engine's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        import torch

        with torch.inference_mode():
            while not self._stopping:
                try:
                    if self._take_work():
                        for key in self._pool.keys:
                            self._step(key)
                except Exception as error:  # any: fail the requests and restart, rather than leave them waiting
                    log.exception("the engine failed and restarts; all requests end with an error")
                    self._pool.clear()
                    self._fail_all(str(error))

    def _take_work(self) -> bool:
        """Wait for work, then do the calls, cancel, and add the requests of the inbox. False: stop."""
        with self._wake:
            while not (self._stopping or self._calls or self._inbox or self._canceled or any(self._pool.counts)):
                self._wake.wait()
            calls, self._calls = self._calls, deque()
            inbox, self._inbox = self._inbox, deque()
            canceled, self._canceled = self._canceled, set()
        if self._stopping:
            return False
        for call in calls:
            call()
        if canceled:
            self._pool.cancel(canceled)
        for key, request in inbox:
            if request.id not in canceled:
                self._add_request(key, request)
        return True

    def _add_request(self, key: DecoderKey, request: Request) -> None:
        if request.id not in self._pending:  # it has failed together with its decoder since
            return
        try:
            self._pool.add_request(key, request)
        except Exception as error:  # the request ends with it; the thread goes on for the others
            log.exception("a request could not be started")
            self._end(request.id, TokenEvent(-1, "error", str(error)))

    def _step(self, key: DecoderKey) -> None:
        if self._pool.is_idle(key):
            return
        began = time.perf_counter()
        try:
            started, tokens = self._pool.step(key)
            self.steps += 1
        except Exception as error:  # out of memory, for example: these requests end with it, the thread goes on
            log.exception("a step of %s failed", key.model.adapter or "the base model")
            self._fail_decoder(key, str(error))
            return
        self._deliver(started, began, tokens)

    def _deliver(self, started: list[str], began: float, tokens: list[Token]) -> None:
        """Record the start of new requests, and pass every token to its sink."""
        for id_ in started:
            if (pending := self._pending.get(id_)) is not None:
                pending.ticket.started = began
        for token in tokens:
            if token.finished:
                self._end(token.id, TokenEvent(token.token, token.reason, token.error))
            elif (pending := self._pending.get(token.id)) is not None:
                pending.sink(TokenEvent(token.token))

    def _fail_decoder(self, key: DecoderKey, message: str) -> None:
        self._pool.discard(key)
        with self._wake:
            failed = [id_ for id_, pending in self._pending.items() if pending.key == key]
        for id_ in failed:
            self._end(id_, TokenEvent(-1, "error", message))
