"""One request on its way through the endpoint, and the trace it leaves: a line in the traffic log, and the figures.

    asked = Asked(owner="shop", check=False)
    traces.answered(asked, result)      traces.refused(asked, error)      traces.ended(asked)

What it is not: how a request is answered (endpoint.py), or how lines are written (traffic.py).
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
from finetune_pipeline.serve.openai_schema import ApiError, ChatRequest
from finetune_pipeline.serve.traffic import Line, Status, TrafficLog


@dataclass
class Asked:
    """Who asks what of whom, since when, and what has to be given back at its end. Request, route and generation are
    there from the moment they are known."""

    owner: str
    check: bool
    request: ChatRequest | None = None
    route: Route | None = None
    generation: Generation | None = None
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    start: float = field(default_factory=time.perf_counter)
    held: ExitStack = field(default_factory=ExitStack)
    prompt_tokens: int = 0
    noted: bool = False

    @property
    def created(self) -> int:
        return int(self.at.timestamp())


class Traces:
    """Notes each request once, whatever became of it."""

    def __init__(self, traffic: TrafficLog, metrics: Metrics) -> None:
        self._traffic, self._metrics = traffic, metrics

    def answered(self, asked: Asked, result: Result) -> None:
        self._note(asked, result.status, result)

    def failed(self, asked: Asked) -> None:
        """Engine or endpoint gave an error."""
        if not asked.noted:
            self._note(asked, "error")

    def ended(self, asked: Asked) -> None:
        """Everything was given back. Where nothing was noted, the client hung up before the answer's end."""
        if asked.noted:
            return
        self._metrics.abandoned.labels(asked.route.model if asked.route else "").inc()
        self._note(asked, "abandoned")

    def refused(self, asked: Asked, error: ApiError) -> None:
        self._note(asked, "refused" if error.status < 500 or error.code == "starting" else "error", code=error.code)

    def _note(self, asked: Asked, status: Status, result: Result | None = None, code: str | None = None) -> None:
        asked.noted = True
        seconds = time.perf_counter() - asked.start
        first = result.first_token - asked.start if result and result.first_token else None
        if asked.route is not None:
            self._count(asked, asked.route, status, seconds, first, result.completion_tokens if result else 0)
        self._traffic.add(line_of(asked, status, seconds, first, result, code), check=asked.check)

    def _count(
        self, asked: Asked, route: Route, status: Status, seconds: float, first: float | None, tokens: int
    ) -> None:
        self._metrics.answers.labels(route.model, route.label, status).inc()
        if status in ("refused", "abandoned"):  # their time is not an answer's
            return
        self._metrics.seconds.labels(route.model).observe(seconds)
        self._metrics.prompt_tokens.labels(route.model).inc(asked.prompt_tokens)
        self._metrics.completion_tokens.labels(route.model).inc(tokens)
        if first is not None:
            self._metrics.first_token.labels(route.model).observe(first)


def line_of(
    asked: Asked, status: Status, seconds: float, first: float | None, result: Result | None, code: str | None
) -> Line:
    """The request as the log has it. A question that was refused is not kept: nothing says how long it is."""
    route, request, generation = asked.route, asked.request, asked.generation
    texts = route is not None and route.log_text and status != "refused"
    tokens = result.completion_tokens if result else generation.completion_tokens if generation else 0
    return Line(
        at=asked.at.isoformat(timespec="milliseconds"),
        request=asked.id,
        task=route.task if route else "",
        model=request.model if route and request else "",
        version=route.version if route else 0,
        adapter=route.adapter or "" if route else "",
        status=status,
        valid=result.valid if result else None,
        seconds=round(seconds, 4),
        first_token_seconds=round(first, 4) if first is not None else None,
        prompt_tokens=asked.prompt_tokens,
        completion_tokens=tokens,
        key=asked.owner,
        stream=request.stream if request else False,
        prompt=request.messages[-1].text if texts and request else None,
        completion=result.text if texts and result else None,
        code=code,
        queued_seconds=round(generation.queued, 4) if generation else None,
    )
