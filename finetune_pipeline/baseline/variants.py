"""The variants that answer the test rows: their names, and a title and description for reports, decisions and the desk.

title(FEW_SHOT)          "Base model, fixed examples"
title("my_variant")      "my_variant": the name itself where no title is known
"""

from __future__ import annotations

from dataclasses import dataclass

ZERO_SHOT, FEW_SHOT, FEW_SHOT_RETRIEVED = "zero_shot", "few_shot", "few_shot_retrieved"
CLASSICAL, CHAMPION, TUNED = "classical", "champion", "tuned"  # champion: the live version, as in MLflow's aliases


@dataclass(frozen=True, slots=True)
class Variant:
    """`about` is one sentence."""

    title: str
    about: str


VARIANTS = {
    ZERO_SHOT: Variant(
        "Base model, instruction only", "The base model gets the task's system prompt and the row's prompt."
    ),
    FEW_SHOT: Variant("Base model, fixed examples", "The same training examples come before every prompt."),
    FEW_SHOT_RETRIEVED: Variant(
        "Base model, similar examples", "The training examples most similar to the prompt come before it."
    ),
    CLASSICAL: Variant("Classical model", "TF-IDF and logistic regression: no language model."),
    CHAMPION: Variant("Live version", "The version that the endpoint serves now, prompted as it is served."),
    TUNED: Variant("Tuned model", "The base model with the trained adapter, prompted without examples."),
}


def described(variant: str) -> Variant:
    """The entry of VARIANTS; for an unknown variant, its name without a description."""
    return VARIANTS.get(variant) or Variant(variant, "")


def title(variant: str) -> str:
    """The variant's name for people."""
    return described(variant).title
