"""`baseline`: the prompted variants and the classical model that the tuned model is compared with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from finetune_pipeline.config.section import Section


class Baseline(Section):
    """Variants evaluated before training. The tuned model has to be better than the best prompted one, and not worse
    than the classical model (`release`)."""

    variants: tuple[Literal["zero_shot", "few_shot", "few_shot_retrieved", "classical"], ...] = Field(
        ("zero_shot", "few_shot", "few_shot_retrieved", "classical"),
        description="zero_shot: system prompt only; few_shot: the same examples in every prompt; few_shot_retrieved: "
        "the most similar examples in each prompt; classical: TF-IDF and logistic regression, for labels and JSON "
        "fields with few values.",
    )
    shots: int = Field(4, ge=1, le=32, description="Examples in the few-shot prompts.")
