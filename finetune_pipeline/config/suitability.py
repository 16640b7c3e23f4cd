"""`suitability`: what a team knows about the job, for the advice whether to fine-tune."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Count, Section


class Suitability(Section):
    """What you know about the job; `suitability_report` weighs it."""

    min_examples: Count = Field(200, description="Fewer usable examples stop the run.")
    recommended_examples: Count = Field(500, description="Fewer usable examples are a warning.")
    override: str | None = Field(
        None, description="Reason to go on in spite of an ERROR; kept with every later artifact."
    )
    knowledge_changes: Literal["never", "yearly", "monthly", "weekly", "daily"] = Field(
        "yearly", description="How often the facts in the answers change; often means retrieval, not weights."
    )
    needs_sources: bool = Field(
        False, description="Must an answer quote where it comes from? Then retrieval is needed."
    )
    requests_per_day: int = Field(1000, ge=0, description="Expected load, for cost and break-even.")
    prompted_price: float = Field(
        0.60, ge=0, description="Price of a million tokens of the model you would prompt instead."
    )
    hosting_per_month: float = Field(
        30.0, ge=0, description="What the machine that serves the tuned model costs a month."
    )
    training_per_hour: float = Field(1.0, ge=0, description="What the machine that trains costs an hour.")
    currency: str = Field("USD", description="Of the three prices above.")
