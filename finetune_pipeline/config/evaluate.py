"""`evaluate`: how answers are generated and what is measured beside the task."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section


class Evaluate(Section):
    max_new_tokens: int | None = Field(
        None, ge=1, description="Longest answer; default: the longest reference and 20 %."
    )
    batch_size: int = Field(64, ge=1, description="Answers generated at the same time.")
    general: bool = Field(True, description="Measure general ability on texts that have nothing to do with the task.")
    memorization: bool = Field(True, description="Measure whether training rows are told from test rows by their loss.")
