"""`quality`: what the quality gate asks of the cleaned rows."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class Quality(Section):
    mostly: Share = Field(0.95, gt=0, description="Share of rows that have to be right in every respect.")
    min_rows: int = Field(200, ge=1, description="Fewer cleaned rows fail the gate.")
    max_prompt_chars: int = Field(8000, ge=1, description="Questions have to be at most this long.")
    max_completion_chars: int = Field(8000, ge=1, description="Answers have to be at most this long.")
    max_dropped: Share = Field(
        0.5,
        description="If reading and cleaning dropped a larger share of all rows than this, the data is broken, "
        "whatever is left.",
    )
