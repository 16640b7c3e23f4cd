"""`split`: the shares of test and validation rows."""

from __future__ import annotations

from pydantic import Field, model_validator

from finetune_pipeline.config.section import Section, Share


class Split(Section):
    """Shares of the rows. Groups and near-duplicate clusters are assigned to one split as a whole."""

    test: Share = Field(
        0.15, gt=0, lt=0.5, description="Share of test rows (0 to 1); more rows can show smaller gains."
    )
    validation: Share = Field(
        0.08, gt=0, lt=0.5, description="Share of validation rows (0 to 1), for the loss during training."
    )
    near_duplicate_threshold: Share = Field(
        0.6,
        gt=0,
        description="Similarity (as in `clean.near_duplicate_threshold`) at which rows are assigned to the same split.",
    )
    seed: int = Field(11, description="Seed of the hash that assigns groups to splits.")

    @model_validator(mode="after")
    def _leaves_rows(self) -> Split:
        if self.test + self.validation >= 0.8:
            raise ValueError("`test` and `validation` leave less than 20 % of the rows for training")
        return self
