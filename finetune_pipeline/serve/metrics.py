"""What the endpoint counts, for Prometheus. Names begin with `finetune_`; every figure's help says what it is.

    finetune_answers_total{model="support_tickets",version="4",status="ok"} 812.0
    finetune_answer_seconds_bucket{model="support_tickets",le="1.0"} 790.0

A registry of its own per endpoint, not the process's: two endpoints in one process (tests) must not share counters.
Labels are served names and versions, never what a client sent: a client must not be able to make series without end.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        by_model = ("model",)
        self.answers = Counter(
            "finetune_answers", "Answers by version and status (ok, invalid, fallback, rejected, error).",
            ("model", "version", "status"), registry=own,
        )  # fmt: skip
        self.refused = Counter("finetune_refused", "Requests refused, by error code.", ("code",), registry=own)
        self.abandoned = Counter("finetune_abandoned", "Requests whose client went away.", by_model, registry=own)
        self.seconds = Histogram(
            "finetune_answer_seconds", "From request to whole answer.", by_model, buckets=SECONDS, registry=own
        )
        self.first_token = Histogram(
            "finetune_first_token_seconds", "From request to first token.", by_model, buckets=SECONDS, registry=own
        )
        self.prompt_tokens = Counter("finetune_prompt_tokens", "Tokens of prompts.", by_model, registry=own)
        self.completion_tokens = Counter("finetune_answer_tokens", "Tokens of answers.", by_model, registry=own)
        self.lines_lost = Counter(
            "finetune_traffic_lines_lost", "Traffic log lines not written: full disk, or too many.", registry=own
        )
        self.deploy_errors = Counter(
            "finetune_deploy_errors", "Desired versions that could not be served.", ("task",), registry=own
        )
        self.running = Gauge("finetune_running_requests", "Requests being computed.", registry=own)
        self.waiting = Gauge("finetune_waiting_requests", "Requests waiting for a place.", registry=own)

    def observe(self, busy: Callable[[], tuple[int, int]]) -> None:
        """Read (running, waiting) from `busy` whenever somebody asks for the figures."""
        self.running.set_function(lambda: busy()[0])
        self.waiting.set_function(lambda: busy()[1])

    def text(self) -> bytes:
        return generate_latest(self.registry)
