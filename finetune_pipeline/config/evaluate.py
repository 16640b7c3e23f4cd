"""`evaluate`: how answers are generated, and what else is measured."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section


class Evaluate(Section):
    """Generation on the test rows, and measurements beside the task metric."""

    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="Most tokens of an answer; default: the longest completion of the training rows plus 20 %.",
    )
    batch_size: int = Field(64, ge=1, description="Sequences decoded at the same time.")
    general: bool = Field(True, description="Measure general ability: the loss on texts unrelated to the task.")
    memorization: bool = Field(
        True, description="Measure memorization: whether the loss separates training rows from test rows."
    )
