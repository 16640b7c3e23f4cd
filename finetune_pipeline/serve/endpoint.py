"""One request to one answer: who asks, which model, what it may cost, what goes back, what is noted.

    authorise, parse, lease the adapter, render the prompt, generate, check, respond, log

Whatever a request holds (a place in the engine, the lease on its adapter) is given back at its end, however it ends: an
answer, an error, or a client that hung up. What it is not: the URLs and the process (app.py).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from finetune_pipeline.errors import ModelError
from finetune_pipeline.evaluate.generate import encode
from finetune_pipeline.serve import chat
from finetune_pipeline.serve.answering import Generation, GenerationFailed, Result, judged, settle
from finetune_pipeline.serve.chat import ApiError, ChatRequest
from finetune_pipeline.serve.connection import ClientGone, Stream, body_of, while_connected
from finetune_pipeline.serve.engine import AdapterGone, Ask, EngineFull
from finetune_pipeline.serve.keys import VARIABLE, Keys
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.routes import Route
from finetune_pipeline.serve.supervisor import Supervisor
from finetune_pipeline.serve.traffic import Line, TrafficLog

RETRY_AFTER = {"retry-after": "2"}


@dataclass
class Asked:
    """One request on its way: who asks what of whom, since when, and what has to be given back at its end."""

    request: ChatRequest
    owner: str
    check: bool
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    start: float = field(default_factory=time.perf_counter)
    held: ExitStack = field(default_factory=ExitStack)
    prompt_tokens: int = 0

    @property
    def created(self) -> int:
        return int(self.at.timestamp())


class Endpoint:
    """The application's parts, and what it does with one request."""

    def __init__(
        self, keys: Keys, supervisor: Supervisor, traffic: TrafficLog, metrics: Metrics, identity: str
    ) -> None:
        self.keys, self.supervisor, self.traffic, self.metrics = keys, supervisor, traffic, metrics
        self.identity = identity
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    # who and what -------------------------------------------------------------------------------------------

    def authorise(self, http: Request) -> str:
        given = http.headers.get("authorization")
        owner = self.keys.owner(given)
        if owner is None:
            what = "the API key is wrong" if given else "there is no API key"
            where = f"keys: {VARIABLE} at the endpoint's start, else the file endpoint_key in its home folder"
            raise ApiError(401, f"{what}; send `Authorization: Bearer <key>` ({where})", "invalid_api_key")
        return owner

    def lease(self, asked: Asked) -> Route:
        """The route of the model asked for; its adapter stays loaded until the request gives back what it holds."""
        model = asked.request.model
        for _ in range(5):
            route = self.supervisor.table.routes.get(model)
            if route is None:
                break
            try:
                asked.held.enter_context(route.engine.lease(route.adapter))
            except AdapterGone:
                continue  # the table has changed between the two lines; look again
            return route
        if not self.supervisor.ready.is_set():
            raise ApiError(503, "the endpoint is loading its models", "starting", headers=RETRY_AFTER)
        known = ", ".join(sorted(self.supervisor.table.routes)) or "none; deploy one with `finetune run`"
        raise ApiError(404, f"there is no model {model!r}; known: {known}", "model_not_found", "model")

    def ask_of(self, asked: Asked, route: Route) -> Ask:
        """The prompt as token ids, with the task's system prompt where the request brings none, and its limits."""
        request = asked.request
        messages = request.chat
        if route.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": route.system})
        try:
            ids = encode(route.engine.tokenizer, messages)
        except ModelError as error:  # the template does not know this order of roles
            raise ApiError(400, f"`messages`: {error.message}", "invalid_value", "messages") from error
        room = route.engine.context - len(ids)
        wanted = request.limit or min(route.max_new_tokens, max(room, 1))
        if wanted > room:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens and the answer may have {wanted}: the model takes "
                f"{route.engine.context} together; shorten `messages`, or ask for less with `max_tokens`",
                "context_length_exceeded",
                "messages",
            )
        asked.prompt_tokens = len(ids)
        sampling = (request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p, request.seed or 0)
        return Ask(route.adapter, ids, route.prefix_ids, wanted, *sampling, stop=route.rule)

    # answers ------------------------------------------------------------------------------------------------

    async def answer(self, http: Request) -> Response:
        owner = self.authorise(http)
        request = chat.parse_request(await body_of(http))
        purpose = http.headers.get("x-finetune-purpose", "")
        asked = Asked(request, owner, check=bool(purpose))
        handed_over = False
        try:
            route = self.lease(asked)
            ask = self.ask_of(asked, route)
            first = Generation(route, ask, request.stops)
            asked.held.callback(first.close)
            if request.stream and route.on_invalid == "pass":
                handed_over = True
                return Stream(self._stream(asked, route, first), self._headers(asked, route), asked.held)
            result = await self._settled(http, asked, route, ask, first)
            return self._respond(asked, route, result)
        except EngineFull:
            raise ApiError(
                429, "as many requests as may wait are waiting; ask again in a moment", "busy", headers=RETRY_AFTER
            ) from None
        finally:
            if not handed_over:
                asked.held.close()

    async def _settled(self, http: Request, asked: Asked, route: Route, ask: Ask, first: Generation) -> Result:
        try:
            result = await while_connected(http, settle(route, ask, asked.request.stops, first))
        except GenerationFailed as error:
            self._note(asked, route, None)
            raise ApiError(500, f"the model failed: {error}", "engine_error") from error
        except ClientGone:
            self.metrics.abandoned.labels(route.model).inc()
            raise
        self._note(asked, route, result)
        return result

    def _respond(self, asked: Asked, route: Route, result: Result) -> Response:
        headers = self._headers(asked, route, result)
        if result.status == "rejected":
            message = f"the model's answer breaks the task's format: {result.problem}"
            raise ApiError(422, message, "invalid_answer", headers=headers)
        if asked.request.stream:
            return Stream(self._pieces(asked, route, result), headers, asked.held)
        usage = chat.usage_of(asked.prompt_tokens, result.answer_tokens)
        trace = self._trace(asked, route, result)
        head = (asked.id, asked.created, asked.request.model, route.fingerprint)
        return JSONResponse(chat.completion(*head, result.text, result.finish, usage, trace), headers=headers)

    async def _stream(self, asked: Asked, route: Route, generation: Generation) -> AsyncIterator[str]:
        """The answer as it comes; what the format says of it stands in the last piece."""
        head = (asked.id, asked.created, asked.request.model, route.fingerprint)
        yield chat.event(chat.chunk(*head, {"role": "assistant", "content": ""}))
        ended = False
        try:
            async for text in generation.texts():
                yield chat.event(chat.chunk(*head, {"content": text}))
            ended = True
            result = judged(route, generation)
            self._note(asked, route, result)
        except GenerationFailed as error:
            ended = True
            self._note(asked, route, None)
            yield chat.event(ApiError(500, f"the model failed: {error}", "engine_error").body())
            return
        finally:
            if not ended:
                self.metrics.abandoned.labels(route.model).inc()
        for row in self._closing(asked, route, result):
            yield row

    async def _pieces(self, asked: Asked, route: Route, result: Result) -> AsyncIterator[str]:
        """An answer that had to be seen as a whole first, as a stream."""
        head = (asked.id, asked.created, asked.request.model, route.fingerprint)
        yield chat.event(chat.chunk(*head, {"role": "assistant", "content": result.text}))
        for row in self._closing(asked, route, result):
            yield row

    def _closing(self, asked: Asked, route: Route, result: Result) -> list[str]:
        head = (asked.id, asked.created, asked.request.model, route.fingerprint)
        rows = [chat.chunk(*head, {}, result.finish) | {"finetune": self._trace(asked, route, result)}]
        options = asked.request.stream_options
        if options is not None and options.include_usage:
            rows.append(chat.chunk(*head, None) | {"usage": chat.usage_of(asked.prompt_tokens, result.answer_tokens)})
        return [*(chat.event(row) for row in rows), "data: [DONE]\n\n"]

    # traces -------------------------------------------------------------------------------------------------

    def _headers(self, asked: Asked, route: Route, result: Result | None = None) -> dict[str, str]:
        headers = {
            "x-finetune-version": route.label,
            "x-finetune-adapter": route.adapter or "",
            "x-finetune-request": asked.id,
        }
        if result is not None:
            headers["x-finetune-status"] = result.status
            if result.valid is not None:
                headers["x-finetune-valid"] = str(result.valid).lower()
        return headers

    def _trace(self, asked: Asked, route: Route, result: Result) -> dict[str, Any]:
        who = (route.task, route.version, route.adapter or "", asked.id)
        return chat.trace_of(*who, result.status, result.valid, result.problem)

    def _note(self, asked: Asked, route: Route, result: Result | None) -> None:
        """The line in the traffic log and the figures; without a result the engine failed."""
        now = time.perf_counter()
        status = result.status if result else "error"
        first = result.first_token - asked.start if result and result.first_token else None
        tokens = result.answer_tokens if result else 0
        self.metrics.answers.labels(route.model, route.label, status).inc()
        self.metrics.seconds.labels(route.model).observe(now - asked.start)
        self.metrics.prompt_tokens.labels(route.model).inc(asked.prompt_tokens)
        self.metrics.answer_tokens.labels(route.model).inc(tokens)
        if first is not None:
            self.metrics.first_token.labels(route.model).observe(first)
        line = Line(
            at=asked.at.isoformat(timespec="milliseconds"),
            request=asked.id,
            task=route.task,
            model=asked.request.model,
            version=route.version,
            adapter=route.adapter or "",
            status=status,
            valid=result.valid if result else None,
            seconds=round(now - asked.start, 4),
            first_token_seconds=round(first, 4) if first is not None else None,
            prompt_tokens=asked.prompt_tokens,
            answer_tokens=tokens,
            key=asked.owner,
            stream=asked.request.stream,
            question=asked.request.messages[-1].text if route.log_text else None,
            answer=result.text if result and route.log_text else None,
        )
        self.traffic.add(line, check=asked.check or route.check)
