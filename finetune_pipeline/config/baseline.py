"""`baseline`: the prompted and classical models that the tuned model is compared with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Section


class Baseline(Section):
    """What a prompt alone can do; the tuned model has to beat the best of these."""

    variants: tuple[Literal["zero_shot", "few_shot", "few_shot_retrieved", "classical"], ...] = Field(
        ("zero_shot", "few_shot", "few_shot_retrieved", "classical"),
        description="classical: TF-IDF and logistic regression, for labels and JSON fields with few values.",
    )
    shots: int = Field(4, ge=1, le=32, description="Examples in the few-shot prompts.")
