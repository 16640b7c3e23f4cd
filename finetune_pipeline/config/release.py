"""`release`: the conditions for promoting a tuned model."""

from __future__ import annotations

from pydantic import Field

from finetune_pipeline.config.section import Section, Share


class Release(Section):
    """A tuned model is promoted if it is better than every prompted baseline (by more than `min_gain`), and not shown
    to be worse than the classical model or the live version, with a loss of `non_inferiority_margin` or more excluded.
    Gains and margins are differences of the share of test rows that are exactly right (0 to 1)."""

    significance_level: float = Field(
        0.05, gt=0, lt=0.5, description="Largest probability of promoting a model that is no better."
    )
    min_gain: float = Field(0.0, ge=0, lt=1, description="The confidence interval of the gain has to be above this.")
    non_inferiority_margin: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="Loss against the classical model and the live version that the confidence interval has to "
        "exclude; a smaller loss that it shows is rejected as well. A smaller margin "
        "needs more test rows: with 200 of them, an equally good model passes 0.05 in 48 to 68 % of the cases, 0.03 in "
        "25 to 37 %.",
    )
    detectable_gain: float = Field(
        0.10,
        ge=0.01,
        lt=1,
        description="Smallest gain (beyond `min_gain`) that matters. With fewer test rows than are needed to detect it "
        "with probability `power`, even if no row gets worse, the decision is INCONCLUSIVE (harm on general texts "
        "still means REJECT): 66 rows with the defaults.",
    )
    power: float = Field(0.8, gt=0.5, lt=1, description="Probability of detecting a true gain of `detectable_gain`.")
    general_margin: float = Field(
        0.10, gt=0, description="Largest relative increase of the loss on general texts; 0.10: 10 %."
    )
    general_waiver: str | None = Field(
        None,
        min_length=10,
        description="Why a model may be promoted whose general ability cannot be measured (a managed provider's API "
        "gives no likelihoods); shown with the decision. Without it such a decision is INCONCLUSIVE at best.",
    )
    slice_margin: float = Field(0.10, gt=0, lt=1, description="A slice is harmed when it loses more than this.")
    min_slice_rows: int = Field(
        10, ge=1, description="Slices with fewer test rows are reported, but do not count in the decision."
    )
    min_valid_rate: Share = Field(
        0.95, description="Share of the tuned model's answers (0 to 1) that have to be valid."
    )
