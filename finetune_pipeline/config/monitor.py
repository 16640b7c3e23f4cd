"""`monitor`: which figures of the live traffic raise an alarm."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class Monitor(Section):
    """Window and limits of the traffic report."""

    window_days: int = Field(7, ge=1, description="Days of traffic that a report covers.")
    min_requests: int = Field(50, ge=1, description="No alarm is raised with fewer requests.")
    max_invalid: Share = Field(
        0.05,
        description="Largest share (0 to 1) of invalid answers; a larger one raises an alarm. It also limits the share "
        "of requests without an answer: a larger one is a warning.",
    )
    max_psi: float = Field(
        0.2,
        gt=0,
        description="Largest population stability index (drift) of prompts and answers; a larger one raises an alarm.",
    )
    max_p95_seconds: float = Field(
        10.0, gt=0, description="Largest 95th percentile of the latency in seconds; a larger one raises an alarm."
    )
