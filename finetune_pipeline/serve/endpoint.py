"""Handles one chat request, from authorization to the response and its trace.

    authorize, parse, lease the adapter, render the prompt, generate, check, respond, log

The resources of a request (its slot in the engine, the lease on its model) are released however it ends: with an
answer, an error, or a client that disconnected.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from finetune_pipeline.serve.api_keys import KEYS_VARIABLE, PIPELINE, ApiKeys
from finetune_pipeline.serve.connection import ClientDisconnected, EventStream, read_body, while_connected
from finetune_pipeline.serve.generation import Generation, GenerationFailed, Result, apply_policy, check
from finetune_pipeline.serve.generation_request import EngineFull, GenerationRequest, ModelGone
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.model_routes import Route
from finetune_pipeline.serve.openai_responses import DONE, AnswerTrace, chunk, completion, sse_event, usage_of
from finetune_pipeline.serve.openai_schema import ApiError, ChatRequest, parse_request
from finetune_pipeline.serve.request_trace import RequestTrace, TraceRecorder
from finetune_pipeline.serve.supervisor import Supervisor
from finetune_pipeline.serve.traffic import PURPOSE_HEADER, TrafficLog

RETRY_AFTER = {"retry-after": "2"}
LOOKUPS = 5  # of a route whose model was unloaded between lookup and lease


class Endpoint:
    """The parts of the application, and what it does with one request."""

    def __init__(
        self, keys: ApiKeys, supervisor: Supervisor, traffic: TrafficLog, metrics: Metrics, identity: str
    ) -> None:
        self.keys, self.supervisor, self.traffic, self.metrics = keys, supervisor, traffic, metrics
        self.recorder = TraceRecorder(traffic, metrics)
        self.identity = identity
        self.started = datetime.now(UTC).isoformat(timespec="seconds")

    async def respond(self, http: Request) -> Response:
        """The response to POST /v1/chat/completions. ApiError, or ClientDisconnected."""
        trace = self.start_trace(http)
        trace.resources.callback(self.recorder.closed, trace)
        streaming = False
        try:
            trace.request = request = parse_request(await read_body(http))
            route = self.lease_route(trace, request.model)
            generation_request = await self.generation_request(trace, request, route)
            trace.generation = generation = route.chat.start(route, generation_request, request.stops)
            trace.resources.callback(generation.close)
            if request.stream and route.on_invalid == "flag":
                streaming = True  # the stream releases the resources
                events = self._stream(trace, request, route, generation)
                return EventStream(events, _headers(trace, route), trace.resources)
            policy = apply_policy(route, generation_request, request.stops, generation)
            result = await while_connected(http, policy)
            self.recorder.answered(trace, result)
            return _response(trace, request, route, result)
        except EngineFull:
            raise self._refuse(
                trace, ApiError(429, "the request queue is full; send the request again", "busy", headers=RETRY_AFTER)
            ) from None
        except ApiError as error:
            raise self._refuse(trace, error) from None
        except GenerationFailed as error:
            self.recorder.failed(trace)
            raise _engine_error(error) from error
        except Exception as error:
            if not isinstance(error, ClientDisconnected):
                self.recorder.failed(trace)
            raise
        finally:
            if not streaming:
                trace.resources.close()

    def authorize(self, http: Request) -> str:
        """The name of the request's key. ApiError 401 without a valid key."""
        header = http.headers.get("authorization")
        owner = self.keys.owner(header)
        if owner is None:
            what = "the API key is wrong" if header else "there is no API key"
            where = f"keys: {KEYS_VARIABLE} at the endpoint's start, else the file endpoint_key in its home folder"
            raise ApiError(401, f"{what}; send `Authorization: Bearer <key>` ({where})", "invalid_api_key")
        return owner

    def start_trace(self, http: Request) -> RequestTrace:
        """The trace of an authorized request. Checks are not counted as traffic, so only the pipeline may mark them."""
        owner, purpose = self.authorize(http), http.headers.get(PURPOSE_HEADER)
        if purpose and owner != PIPELINE:
            message = f"the header {PURPOSE_HEADER} requires the pipeline's own key; leave it out"
            raise ApiError(403, message, "forbidden_header")
        return RequestTrace(owner, is_check=bool(purpose))

    def lease_route(self, trace: RequestTrace, model: str) -> Route:
        """The route of the requested model; its model stays loaded until the trace's resources are released.
        ApiError 404 for an unknown model, 503 while the first models load."""
        for _ in range(LOOKUPS):
            route = self.supervisor.table.routes.get(model)
            if route is None:
                break
            try:
                for id_ in (route.id, route.base) if route.on_invalid == "base" else (route.id,):
                    trace.resources.enter_context(route.engine.models.lease(id_))
            except ModelGone:
                continue  # the table was replaced between the two lines; look up again
            trace.route = route
            return route
        if not self.supervisor.ready.is_set():
            raise ApiError(
                503, "the endpoint is loading its models; send the request again", "starting", headers=RETRY_AFTER
            )
        known = ", ".join(sorted(self.supervisor.table.routes)) or "none; deploy one with `finetune run`"
        raise ApiError(404, f"there is no model {model!r}; known: {known}", "model_not_found", "model")

    async def generation_request(self, trace: RequestTrace, request: ChatRequest, route: Route) -> GenerationRequest:
        """What goes to the route's engine, with the task's system prompt where the request has none. ApiError 400 when
        it cannot be answered."""
        messages = request.chat
        if route.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": route.system})
        made = await route.chat.request(route, request, messages)
        trace.prompt_tokens = len(made.prompt_ids)
        return made

    def _refuse(self, trace: RequestTrace, error: ApiError) -> ApiError:
        self.recorder.refused(trace, error)
        return error

    async def _stream(
        self, trace: RequestTrace, request: ChatRequest, route: Route, generation: Generation
    ) -> AsyncIterator[str]:
        """The answer as events while it is generated; the last chunk has the result of the format check."""
        head = trace.head(request, route)
        try:
            yield sse_event(chunk(head, {"role": "assistant", "content": ""}))
            async for text in generation.deltas():
                yield sse_event(chunk(head, {"content": text}))
            result = check(route, generation)
            self.recorder.answered(trace, result)
        except GenerationFailed as error:
            self.recorder.failed(trace)
            yield sse_event(_engine_error(error).body())
            return
        for event in _last_events(trace, request, route, result):
            yield event


def _response(trace: RequestTrace, request: ChatRequest, route: Route, result: Result) -> Response:
    """A complete answer, as one body or as a stream. ApiError 422 when it was rejected."""
    headers = _headers(trace, route, result)
    if result.status == "rejected":
        message = f"the model's answer breaks the task's format: {result.problem}"
        raise ApiError(422, message, "invalid_answer", headers=headers)
    if request.stream:
        return EventStream(_events(trace, request, route, result), headers, trace.resources)
    usage = usage_of(trace.prompt_tokens, result.completion_tokens)
    body = completion(
        trace.head(request, route), result.text, result.finish, usage, _answer_trace(trace, route, result)
    )
    return JSONResponse(body, headers=headers)


async def _events(trace: RequestTrace, request: ChatRequest, route: Route, result: Result) -> AsyncIterator[str]:
    """A complete answer as a stream with one content chunk."""
    yield sse_event(chunk(trace.head(request, route), {"role": "assistant", "content": result.text}))
    for event in _last_events(trace, request, route, result):
        yield event


def _last_events(trace: RequestTrace, request: ChatRequest, route: Route, result: Result) -> list[str]:
    """The chunk with finish reason and `finetune` object, the usage where it was requested, and [DONE]."""
    head = trace.head(request, route)
    chunks = [chunk(head, {}, result.finish) | {"finetune": _answer_trace(trace, route, result).to_json()}]
    if request.stream_options is not None and request.stream_options.include_usage:
        chunks.append(chunk(head, None) | {"usage": usage_of(trace.prompt_tokens, result.completion_tokens)})
    return [*(sse_event(body) for body in chunks), DONE]


def _headers(trace: RequestTrace, route: Route, result: Result | None = None) -> dict[str, str]:
    headers = {
        "x-finetune-version": route.label,
        "x-finetune-adapter": route.adapter or "",
        "x-finetune-request": trace.id,
    }
    if result is not None:
        headers["x-finetune-status"] = result.status
        if result.valid is not None:
            headers["x-finetune-valid"] = str(result.valid).lower()
    return headers


def _answer_trace(trace: RequestTrace, route: Route, result: Result) -> AnswerTrace:
    model = (route.task, route.version, route.adapter or "")
    return AnswerTrace(*model, trace.id, result.status, result.valid, result.problem)


def _engine_error(error: GenerationFailed) -> ApiError:
    return ApiError(500, f"the model failed: {error}", "engine_error")
