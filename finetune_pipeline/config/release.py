"""`release`: what a candidate has to show before it is promoted."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class Release(Section):
    """What a candidate has to show: it is better than every prompted baseline (by more than `min_gain`), and no worse
    than the classical model and the live version (by at most `non_inferiority_margin`)."""

    significance_level: float = Field(
        0.05, gt=0, lt=0.5, description="Largest chance of promoting a model that is no better."
    )
    min_gain: float = Field(0.0, ge=0, lt=1, description="The interval of the gain has to lie above this.")
    non_inferiority_margin: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="How much worse than the classical model or the live version (share of test rows exactly right) "
        "the interval may still allow the candidate to be. A smaller margin needs more test rows: with 200 of them, an "
        "equally good candidate passes 5 points in 48 to 68 % of the cases, 3 points in 25 to 37 %.",
    )
    detectable_gain: float = Field(
        0.10,
        ge=0.01,
        lt=1,
        description="The smallest gain (beyond `min_gain`) that matters. With fewer test rows than it takes to show it "
        "with chance `power`, even if no row is lost, the decision is INCONCLUSIVE: 66 rows with the defaults.",
    )
    power: float = Field(
        0.8, gt=0.5, lt=1, description="Chance with which a true gain of `detectable_gain` should be shown."
    )
    general_margin: float = Field(
        0.10, gt=0, description="Largest loss of general ability (relative rise of the loss on general text) accepted."
    )
    slice_margin: float = Field(0.10, gt=0, lt=1, description="A slice counts as harmed when it loses more than this.")
    min_slice_rows: int = Field(10, ge=1, description="Slices with fewer test rows are shown but decide nothing.")
    min_valid_rate: Share = Field(0.95, description="Share of the tuned model's answers that have to be valid.")
