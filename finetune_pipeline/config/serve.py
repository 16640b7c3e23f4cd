"""`serve`: the model's name in the endpoint, invalid answers, and the parity check."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class Serve(Section):
    alias: str | None = Field(None, description="Model name in the endpoint; default: the task's name.")
    on_invalid: Literal["flag", "retry", "base", "reject"] = Field(
        "flag",
        description="What to do with an answer that breaks the format: give it, flagged, retry once, ask base, 422.",
    )
    parity: Share = Field(
        0.97, description="Share of the replayed test rows whose served answer must equal the evaluated."
    )
    parity_rows: int = Field(200, ge=1, description="At most this many test rows are replayed through the endpoint.")
    log_text: bool = Field(True, description="Keep questions and answers (masked) in the traffic log, or only figures.")
