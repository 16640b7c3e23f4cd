"""`split`: the shares of test and validation rows."""

from __future__ import annotations

from pydantic import Field, model_validator

from finetune_pipeline.config.section import Section, Share


class Split(Section):
    test: Share = Field(
        0.15, gt=0, lt=0.5, description="Share of the rows kept for the decision; more shows smaller gains."
    )
    validation: Share = Field(0.08, gt=0, lt=0.5, description="Share kept to watch the training.")
    near_duplicate_threshold: Share = Field(
        0.6,
        gt=0,
        description="Similarity (as in `clean.near_duplicate_threshold`) from which rows must fall on the same side.",
    )
    seed: int = Field(11, description="Of the hash that assigns groups to sides.")

    @model_validator(mode="after")
    def _leaves_rows(self) -> Split:
        if self.test + self.validation >= 0.8:
            raise ValueError("`test` and `validation` leave less than 20 % of the rows for training")
        return self
