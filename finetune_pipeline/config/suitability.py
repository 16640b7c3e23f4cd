"""`suitability`: facts and prices for the report on whether to fine-tune."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Count, Section

# the GPUs of models/gpus.py
GpuName = Literal["l4", "a10", "rtx3090", "rtx4090", "l40s", "a100-40", "a100-80", "h100", "h200", "b200"]


class Suitability(Section):
    """Facts about the task that `suitability_report` uses."""

    min_examples: Count = Field(200, description="With fewer usable examples the gate fails.")
    recommended_examples: Count = Field(500, description="With fewer usable examples there is a warning.")
    override: str | None = Field(None, description="Reason to continue although the gate fails; shown in the report.")
    knowledge_changes: Literal["never", "yearly", "monthly", "weekly", "daily"] = Field(
        "yearly", description="How often facts in the answers change; if often, retrieval fits better than fine-tuning."
    )
    needs_sources: bool = Field(
        False, description="Whether an answer has to cite its source; retrieval is then needed."
    )
    requests_per_day: int = Field(1000, ge=0, description="Expected requests per day, for cost and break-even.")
    prompted_price: float = Field(
        0.60, ge=0, description="Price per million tokens of the model that would be prompted instead."
    )
    hosting_per_month: float = Field(
        30.0, ge=0, description="Price per month of the machine that serves the tuned model."
    )
    training_per_hour: float = Field(1.0, ge=0, description="Price per hour of the machine that trains.")
    gpu_per_hour: dict[GpuName, float] = Field(
        {}, description="Price per hour of one GPU, by name, for the cost in the plan of a training, such as h100: 2.5."
    )
    currency: str = Field("USD", description="Currency of these prices.")
