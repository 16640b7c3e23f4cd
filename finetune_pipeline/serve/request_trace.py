"""The trace of one request: what is known about it so far, and its record in the traffic log and the metrics.

    trace = RequestTrace(owner="shop", is_check=False)
    recorder.answered(trace, result)    recorder.refused(trace, error)    recorder.closed(trace)

Each request is recorded once, however it ends.
"""

from __future__ import annotations

import time
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_pipeline.serve.generation import Generation, Result
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.model_routes import Route
from finetune_pipeline.serve.openai_responses import ResponseHead
from finetune_pipeline.serve.openai_schema import ApiError, ChatRequest
from finetune_pipeline.serve.traffic import Line, Status, TrafficLog


@dataclass
class RequestTrace:
    """Who sent the request and when, and the resources to release at its end (`resources`). `request`, `route` and
    `generation` are set as soon as they are known; `start` is time.perf_counter()."""

    owner: str
    is_check: bool
    request: ChatRequest | None = None
    route: Route | None = None
    generation: Generation | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    start: float = field(default_factory=time.perf_counter)
    resources: ExitStack = field(default_factory=ExitStack)
    prompt_tokens: int = 0
    recorded: bool = False

    def head(self, request: ChatRequest, route: Route) -> ResponseHead:
        return ResponseHead(self.id, int(self.at.timestamp()), request.model, route.fingerprint)


class TraceRecorder:
    """Writes traces to the traffic log and the metrics."""

    def __init__(self, traffic: TrafficLog, metrics: Metrics) -> None:
        self._traffic, self._metrics = traffic, metrics

    def answered(self, trace: RequestTrace, result: Result) -> None:
        if trace.generation is not None:  # a provider counts the prompt's tokens, and reports them with the answer
            trace.prompt_tokens = trace.prompt_tokens or trace.generation.prompt_tokens
        self._record(trace, result.status, result)

    def failed(self, trace: RequestTrace) -> None:
        """The engine or the endpoint raised an error."""
        if not trace.recorded:
            self._record(trace, "error")

    def closed(self, trace: RequestTrace) -> None:
        """All resources are released. If nothing was recorded, the client disconnected before the answer's end."""
        if trace.recorded:
            return
        self._metrics.abandoned.labels(trace.route.model if trace.route else "").inc()
        self._record(trace, "abandoned")

    def refused(self, trace: RequestTrace, error: ApiError) -> None:
        """The response is an error. An answer that the policy rejected is recorded already, as `rejected`."""
        if not trace.recorded:
            status: Status = "refused" if error.status < 500 or error.code == "starting" else "error"
            self._record(trace, status, code=error.code)

    def _record(
        self, trace: RequestTrace, status: Status, result: Result | None = None, code: str | None = None
    ) -> None:
        trace.recorded = True
        seconds = time.perf_counter() - trace.start
        first_token = result.first_token - trace.start if result and result.first_token else None
        if trace.route is not None:
            self._count(trace, trace.route, status, seconds, first_token, result.completion_tokens if result else 0)
        line = traffic_line(trace, status, seconds, first_token, result, code)
        self._traffic.add(line, is_check=trace.is_check)

    def _count(
        self, trace: RequestTrace, route: Route, status: Status, seconds: float, first_token: float | None, tokens: int
    ) -> None:
        self._metrics.answers.labels(route.model, route.label, status).inc()
        if status in ("refused", "abandoned"):  # their time is not that of an answer
            return
        self._metrics.seconds.labels(route.model).observe(seconds)
        self._metrics.prompt_tokens.labels(route.model).inc(trace.prompt_tokens)
        self._metrics.completion_tokens.labels(route.model).inc(tokens)
        if first_token is not None:
            self._metrics.first_token.labels(route.model).observe(first_token)


def traffic_line(
    trace: RequestTrace,
    status: Status,
    seconds: float,
    first_token: float | None,
    result: Result | None,
    code: str | None,
) -> Line:
    """The request's line in the traffic log. A refused prompt is not kept: its length has no bound."""
    route, request, generation = trace.route, trace.request, trace.generation
    keep_text = route is not None and route.log_text and status != "refused"
    tokens = result.completion_tokens if result else generation.completion_tokens if generation else 0
    return Line(
        at=trace.at.isoformat(timespec="milliseconds"),
        request=trace.id,
        task=route.task if route else "",
        model=request.model if route and request else "",
        version=route.version if route else 0,
        adapter=route.adapter or "" if route else "",
        status=status,
        valid=result.valid if result else None,
        seconds=round(seconds, 4),
        first_token_seconds=round(first_token, 4) if first_token is not None else None,
        prompt_tokens=trace.prompt_tokens,
        completion_tokens=tokens,
        key=trace.owner,
        stream=request.stream if request else False,
        prompt=request.messages[-1].text if keep_text and request else None,
        completion=result.text if keep_text and result else None,
        code=code,
        queued_seconds=round(generation.queued, 4) if generation else None,
    )
