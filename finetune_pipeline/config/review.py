"""`review`: how many rows the experts see, and what share of them has to be right."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Count, Section, Share


class ReviewRules(Section):
    fraction: Share = Field(
        0.10, gt=0, description="Share of the cleaned rows that nobody has reviewed yet that a round draws."
    )
    min_rows: int = Field(20, ge=1, description="At least this many rows, however small the share.")
    max_rows: int = Field(500, ge=1, description="At most this many rows, however large the data.")
    min_approved: Share = Field(0.95, description="Share of reviewed rows that must be right as they are.")
    confidence: Share = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence of the exact binomial bound that is shown, over all rounds of the review together.",
    )
    require_lower_bound: bool = Field(
        False,
        description="True: the lower bound itself, not only the observed share, has to reach the threshold; a round "
        "then has at least as many rows as can show it.",
    )
    max_flagged: Count = Field(
        10, description="Pairs of nearly equal questions with other answers shown besides the sample; not in its share."
    )
    reviewers: int = Field(1, ge=1, le=5, description="Experts per row; with two or more their agreement is measured.")
    seed: int = Field(7, description="Of the sample.")
    recorded: str | None = Field(
        None, description="File of verdicts given elsewhere, relative to the task's folder; used where content matches."
    )
