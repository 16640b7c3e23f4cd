"""`review`: how many rows the experts review, and which share has to be right."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Count, Section, Share


class ReviewRules(Section):
    """Sample size and threshold of the review gate."""

    fraction: Share = Field(
        0.10, gt=0, description="Sample size of a round, as a share of the cleaned rows that nobody has reviewed yet."
    )
    min_rows: int = Field(20, ge=1, description="Smallest sample, in rows.")
    max_rows: int = Field(500, ge=1, description="Largest sample, in rows.")
    min_approved: Share = Field(
        0.95, description="Share of reviewed rows (0 to 1) that has to be right without a correction."
    )
    confidence: Share = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Confidence of the exact binomial (Clopper-Pearson) lower bound, over all rounds of the review "
        "together.",
    )
    require_lower_bound: bool = Field(
        False,
        description="true: the lower bound, not only the observed share, has to reach `min_approved`; a round then has "
        "at least as many rows as are needed to reach it.",
    )
    max_flagged: Count = Field(
        10,
        description="Most pairs of near-duplicate prompts with different completions to review beside the sample; "
        "they do not count in the share.",
    )
    reviewers: int = Field(
        1, ge=1, le=5, description="Reviewers per row; with two or more their agreement is measured."
    )
    seed: int = Field(7, description="Random seed of the sample.")
    recorded: str | None = Field(
        None,
        description="JSONL file of verdicts given outside the desk, relative to the task's folder; used for rows whose "
        "content has not changed.",
    )
