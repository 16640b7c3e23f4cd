"""One request to one answer: who asks, which model, what it may cost, what goes back, what is noted.

    authorize, parse, lease the adapter, render the prompt, generate, check, respond, log

Whatever a request holds (a place in the engine, the lease on its adapter) is given back at its end, however it ends: an
answer, an error, or a client that hung up. What it is not: the URLs and the process (app.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.generate import encode
from finetune_pipeline.serve import openai_schema
from finetune_pipeline.serve.api_keys import PIPELINE, VARIABLE, Keys
from finetune_pipeline.serve.asked import Asked, Traces
from finetune_pipeline.serve.connection import ClientGone, Stream, body_of, while_connected
from finetune_pipeline.serve.engine import AdapterGone, EngineFull, GenerationRequest
from finetune_pipeline.serve.generation import Generation, GenerationFailed, Result, checked, settle
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.model_routes import Route
from finetune_pipeline.serve.openai_schema import ApiError, ChatRequest
from finetune_pipeline.serve.supervisor import Supervisor
from finetune_pipeline.serve.traffic import TrafficLog

RETRY_AFTER = {"retry-after": "2"}
CHARACTERS_PER_TOKEN = 16  # a prompt of more for each token that fits is refused before it is tokenized
PURPOSE = "x-finetune-purpose"


class Endpoint:
    """The application's parts, and what it does with one request."""

    def __init__(
        self, keys: Keys, supervisor: Supervisor, traffic: TrafficLog, metrics: Metrics, identity: str
    ) -> None:
        self.keys, self.supervisor, self.traffic, self.metrics = keys, supervisor, traffic, metrics
        self.traces = Traces(traffic, metrics)
        self.identity = identity
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    # who and what -------------------------------------------------------------------------------------------

    def authorize(self, http: Request) -> str:
        given = http.headers.get("authorization")
        owner = self.keys.owner(given)
        if owner is None:
            what = "the API key is wrong" if given else "there is no API key"
            where = f"keys: {VARIABLE} at the endpoint's start, else the file endpoint_key in its home folder"
            raise ApiError(401, f"{what}; send `Authorization: Bearer <key>` ({where})", "invalid_api_key")
        return owner

    def asked(self, http: Request) -> Asked:
        """Who asks. What is marked as a check is no traffic, so that nobody may mark it but the pipeline."""
        owner, purpose = self.authorize(http), http.headers.get(PURPOSE)
        if purpose and owner != PIPELINE:
            raise ApiError(403, f"the header {PURPOSE} takes the pipeline's own key; leave it out", "forbidden_header")
        return Asked(owner, check=bool(purpose))

    def lease(self, asked: Asked, model: str) -> Route:
        """The route of the model asked for; its adapter stays loaded until the request gives back what it holds."""
        for _ in range(5):
            route = self.supervisor.table.routes.get(model)
            if route is None:
                break
            try:
                asked.held.enter_context(route.engine.lease(route.adapter))
            except AdapterGone:
                continue  # the table has changed between the two lines; look again
            asked.route = route
            return route
        if not self.supervisor.ready.is_set():
            raise ApiError(503, "the endpoint is loading its models", "starting", headers=RETRY_AFTER)
        known = ", ".join(sorted(self.supervisor.table.routes)) or "none; deploy one with `finetune run`"
        raise ApiError(404, f"there is no model {model!r}; known: {known}", "model_not_found", "model")

    async def ask_of(self, asked: Asked, request: ChatRequest, route: Route) -> GenerationRequest:
        """The prompt as token ids, with the task's system prompt where the request brings none, and its limits. The
        answer is never longer than the route's answers were in the evaluation."""
        messages = request.chat
        if route.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": route.system})
        characters = sum(len(message["content"]) for message in messages)
        if characters > CHARACTERS_PER_TOKEN * route.engine.context:
            raise _too_long(f"the prompt has {characters} characters", route.engine.context)
        try:  # a long prompt takes a while: not on the event loop, where everybody waits for it
            ids = await asyncio.to_thread(encode, route.engine.tokenizer, messages)
        except ModelError as error:  # the template does not know this order of roles
            raise ApiError(400, f"`messages`: {error.message}", "invalid_value", "messages") from error
        room = route.engine.context - len(ids)
        wanted = min(request.limit or max(room, 1), route.max_new_tokens)
        if wanted > room:
            raise _too_long(f"the prompt has {len(ids)} tokens and the answer may have {wanted}", route.engine.context)
        asked.prompt_tokens = len(ids)
        sampling = (request.temperature or 0.0, 1.0 if request.top_p is None else request.top_p, request.seed or 0)
        return GenerationRequest(route.adapter, ids, route.prefix_ids, wanted, *sampling, stop=route.rule)

    # answers ------------------------------------------------------------------------------------------------

    async def answer(self, http: Request) -> Response:
        asked = self.asked(http)
        asked.held.callback(self.traces.ended, asked)
        handed_over = False
        try:
            asked.request = request = openai_schema.parse_request(await body_of(http))
            route = self.lease(asked, request.model)
            ask = await self.ask_of(asked, request, route)
            asked.generation = first = Generation(route, ask, request.stops)
            asked.held.callback(first.close)
            if request.stream and route.on_invalid == "flag":
                handed_over = True
                return Stream(self._stream(asked, request, route, first), self._headers(asked, route), asked.held)
            result = await while_connected(http, settle(route, ask, request.stops, first))
            self.traces.answered(asked, result)
            return self._respond(asked, request, route, result)
        except EngineFull:
            raise self._refuse(
                asked,
                ApiError(429, "as many requests as may wait are waiting; ask again", "busy", headers=RETRY_AFTER),
            ) from None
        except ApiError as error:
            raise self._refuse(asked, error) from None
        except GenerationFailed as error:
            self.traces.failed(asked)
            raise ApiError(500, f"the model failed: {error}", "engine_error") from error
        except Exception as error:
            if not isinstance(error, ClientGone):
                self.traces.failed(asked)
            raise
        finally:
            if not handed_over:
                asked.held.close()

    def _refuse(self, asked: Asked, error: ApiError) -> ApiError:
        self.traces.refused(asked, error)
        return error

    def _respond(self, asked: Asked, request: ChatRequest, route: Route, result: Result) -> Response:
        headers = self._headers(asked, route, result)
        if result.status == "rejected":
            message = f"the model's answer breaks the task's format: {result.problem}"
            raise ApiError(422, message, "invalid_answer", headers=headers)
        if request.stream:
            return Stream(self._pieces(asked, request, route, result), headers, asked.held)
        usage = openai_schema.usage_of(asked.prompt_tokens, result.completion_tokens)
        trace = self._trace(asked, route, result)
        head = (asked.id, asked.created, request.model, route.fingerprint)
        return JSONResponse(openai_schema.completion(*head, result.text, result.finish, usage, trace), headers=headers)

    async def _stream(
        self, asked: Asked, request: ChatRequest, route: Route, generation: Generation
    ) -> AsyncIterator[str]:
        """The answer as it comes; what the format says of it stands in the last piece."""
        head = (asked.id, asked.created, request.model, route.fingerprint)
        try:
            yield openai_schema.event(openai_schema.chunk(*head, {"role": "assistant", "content": ""}))
            async for text in generation.texts():
                yield openai_schema.event(openai_schema.chunk(*head, {"content": text}))
            result = checked(route, generation)
            self.traces.answered(asked, result)
        except GenerationFailed as error:
            self.traces.failed(asked)
            yield openai_schema.event(ApiError(500, f"the model failed: {error}", "engine_error").body())
            return
        for row in self._closing(asked, request, route, result):
            yield row

    async def _pieces(self, asked: Asked, request: ChatRequest, route: Route, result: Result) -> AsyncIterator[str]:
        """An answer that had to be seen as a whole first, as a stream."""
        head = (asked.id, asked.created, request.model, route.fingerprint)
        yield openai_schema.event(openai_schema.chunk(*head, {"role": "assistant", "content": result.text}))
        for row in self._closing(asked, request, route, result):
            yield row

    def _closing(self, asked: Asked, request: ChatRequest, route: Route, result: Result) -> list[str]:
        head = (asked.id, asked.created, request.model, route.fingerprint)
        rows = [openai_schema.chunk(*head, {}, result.finish) | {"finetune": self._trace(asked, route, result)}]
        options = request.stream_options
        if options is not None and options.include_usage:
            rows.append(
                openai_schema.chunk(*head, None)
                | {"usage": openai_schema.usage_of(asked.prompt_tokens, result.completion_tokens)}
            )
        return [*(openai_schema.event(row) for row in rows), "data: [DONE]\n\n"]

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
        return openai_schema.trace_of(*who, result.status, result.valid, result.problem)


def _too_long(what: str, context: int) -> ApiError:
    return ApiError(
        400,
        f"{what}: the model takes {context} tokens together; shorten `messages`, or ask for less with `max_tokens`",
        "context_length_exceeded",
        "messages",
    )
