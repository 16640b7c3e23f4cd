"""The endpoint's metrics for Prometheus. Names begin with `finetune_`; each has a help text.

    finetune_answers_total{model="support_tickets",version="4",status="ok"} 812.0
    finetune_answer_seconds_bucket{model="support_tickets",le="1.0"} 790.0

Each endpoint has its own registry, so that two endpoints in one process (tests) do not share counters. Label values are
served names and versions, never text from a client: a client must not be able to create unlimited series.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from finetune_pipeline.serve.traffic import Status

BY_MODEL, BY_VERSION = ("model",), ("model", "version", "status")
STATUSES = ", ".join(get_args(Status))
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        seconds = partial(Histogram, labelnames=BY_MODEL, buckets=SECONDS, registry=registry)
        self.answers = counter("finetune_answers", f"Requests by version and status ({STATUSES}).", BY_VERSION)
        self.refused = counter("finetune_refused", "Error responses, by error code.", ("code",))
        self.abandoned = counter(
            "finetune_abandoned", "Requests whose client disconnected before the answer.", BY_MODEL
        )
        self.seconds = seconds("finetune_answer_seconds", "Seconds from the request to the complete answer.")
        self.first_token = seconds("finetune_first_token_seconds", "Seconds from the request to the first token.")
        self.prompt_tokens = counter("finetune_prompt_tokens", "Prompt tokens.", BY_MODEL)
        self.completion_tokens = counter("finetune_completion_tokens", "Completion tokens.", BY_MODEL)
        self.lines_lost = counter(
            "finetune_traffic_lines_lost", "Traffic log lines not written: the disk is full, or too slow."
        )
        self.deploy_errors = counter(
            "finetune_deploy_errors", "Errors of desired versions that cannot be served.", ("task",)
        )
        self.running = gauge("finetune_running_requests", "Requests in the engine's batch.")
        self.waiting = gauge("finetune_waiting_requests", "Requests waiting for a slot.")

    def observe(self, busy: Callable[[], tuple[int, int]]) -> None:
        """Read (running, waiting) from `busy` at each scrape."""
        self.running.set_function(lambda: busy()[0])
        self.waiting.set_function(lambda: busy()[1])

    def text(self) -> bytes:
        return generate_latest(self.registry)
