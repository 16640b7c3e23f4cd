"""`quality`: what the quality gate requires of the cleaned rows."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class Quality(Section):
    """Expectations of the Great Expectations suite on the cleaned rows."""

    mostly: Share = Field(0.95, gt=0, description="Share of rows (0 to 1) that have to pass every check.")
    min_rows: int = Field(200, ge=1, description="The gate fails with fewer cleaned rows.")
    max_prompt_chars: int = Field(8000, ge=1, description="Longest prompt, in characters.")
    max_completion_chars: int = Field(8000, ge=1, description="Longest completion, in characters.")
    max_dropped: Share = Field(
        0.5,
        description="Largest share of all rows that reading and cleaning may drop; the gate fails with a larger one, "
        "however good the remaining rows are.",
    )
