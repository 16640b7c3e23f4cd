"""`monitor`: what of the live traffic raises an alarm."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class Monitor(Section):
    window_days: int = Field(7, ge=1, description="Days of traffic that a report covers.")
    min_requests: int = Field(50, ge=1, description="With fewer requests no alarm is raised.")
    max_invalid: Share = Field(
        0.05, description="Share of answers that break the format from which an alarm is raised."
    )
    max_psi: float = Field(
        0.2, gt=0, description="Population stability index of inputs and answers that raises an alarm."
    )
    max_p95_seconds: float = Field(10.0, gt=0, description="95th percentile of the latency that raises an alarm.")
