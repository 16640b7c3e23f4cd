"""Title and description of each variant that answers the test rows, for reports, decisions and the desk.

title("few_shot")        "Base model, fixed examples"
title("my_variant")      "my_variant": the name itself where no title is known
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """`about` is one sentence."""

    title: str
    about: str


VARIANTS = {
    "zero_shot": Variant(
        "Base model, instruction only", "The base model gets the task's system prompt and the row's prompt."
    ),
    "few_shot": Variant("Base model, fixed examples", "The same training examples come before every prompt."),
    "few_shot_retrieved": Variant(
        "Base model, similar examples", "The training examples most similar to the prompt come before it."
    ),
    "classical": Variant("Classical model", "TF-IDF and logistic regression: no language model."),
    "champion": Variant("Live version", "The version that the endpoint serves now, prompted as it is served."),
    "tuned": Variant("Tuned model", "The base model with the trained adapter, prompted without examples."),
}


def described(variant: str) -> Variant:
    """The entry of VARIANTS; for an unknown variant, its name without a description."""
    return VARIANTS.get(variant) or Variant(variant, "")


def title(variant: str) -> str:
    """The variant's name for people."""
    return described(variant).title
