"""The endpoint's metrics for Prometheus. Names begin with `finetune_`; each has a help text.

    finetune_answers_total{model="support_tickets",version="4",status="ok"} 812.0
    finetune_answer_seconds_bucket{model="support_tickets",le="1.0"} 790.0

Each endpoint has its own registry, so that two endpoints in one process (tests) do not share counters. Label values are
served names and versions, never text from a client: a client must not be able to create unlimited series.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        by_model = ("model",)
        statuses = "ok, invalid, fallback, rejected, error, refused, abandoned"
        self.answers = Counter(
            "finetune_answers",
            f"Requests by version and status ({statuses}).",
            ("model", "version", "status"),
            registry=registry,
        )
        self.refused = Counter("finetune_refused", "Error responses, by error code.", ("code",), registry=registry)
        self.abandoned = Counter(
            "finetune_abandoned", "Requests whose client disconnected before the answer.", by_model, registry=registry
        )
        self.seconds = Histogram(
            "finetune_answer_seconds",
            "Seconds from the request to the complete answer.",
            by_model,
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "finetune_first_token_seconds",
            "Seconds from the request to the first token.",
            by_model,
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("finetune_prompt_tokens", "Prompt tokens.", by_model, registry=registry)
        self.completion_tokens = Counter(
            "finetune_completion_tokens", "Completion tokens.", by_model, registry=registry
        )
        self.lines_lost = Counter(
            "finetune_traffic_lines_lost",
            "Traffic log lines not written: the disk is full, or too slow.",
            registry=registry,
        )
        self.deploy_errors = Counter(
            "finetune_deploy_errors", "Errors of desired versions that cannot be served.", ("task",), registry=registry
        )
        self.running = Gauge("finetune_running_requests", "Requests in the engine's batch.", registry=registry)
        self.waiting = Gauge("finetune_waiting_requests", "Requests waiting for a slot.", registry=registry)

    def observe(self, busy: Callable[[], tuple[int, int]]) -> None:
        """Read (running, waiting) from `busy` at each scrape."""
        self.running.set_function(lambda: busy()[0])
        self.waiting.set_function(lambda: busy()[1])

    def text(self) -> bytes:
        return generate_latest(self.registry)
