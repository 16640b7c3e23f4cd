"""The price of 1000 answers of each variant, at the prices declared under `suitability`.

    cost(variants, task.suitability)
    # {"currency": "USD", "per_1000": {"tuned": 1.0, "few_shot": 0.24}, "requests_per_day": 800, "prompted_price": 0.6}

Hosting for the tuned model and the live version, tokens for a prompt to a model that is paid by the token. A model of a
managed provider is paid by the token as well, at the prices declared under `train.provider`. The classical model has no
price: it runs on any machine that is there anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from finetune_pipeline.baseline.figures import VariantFigures
from finetune_pipeline.baseline.prompts import PROMPTED
from finetune_pipeline.baseline.variants import CHAMPION, TUNED
from finetune_pipeline.config import Provider, Suitability
from finetune_pipeline.providers.cost import answer_cost

DAYS_PER_MONTH = 365 / 12


class CostFigures(TypedDict):
    """`cost` in report.json. `per_1000`: variant -> price of 1000 answers, in `currency`; `prompted_price`: of a
    million tokens; `by_token`: the variants that a provider answered at its own declared prices."""

    currency: str
    per_1000: dict[str, float]
    requests_per_day: float
    prompted_price: float
    by_token: list[str]


def cost(
    variants: Mapping[str, VariantFigures], prices: Suitability, providers: Mapping[str, Provider] | None = None
) -> CostFigures:
    """The prices of all variants that have one. Hosting has none per answer where no requests are declared.
    `providers`: variant -> the provider that answered it."""
    managed = providers or {}
    per_1000 = {
        name: round((figures["prompt_tokens"] + figures["completion_tokens"]) * prices.prompted_price / 1000, 4)
        for name, figures in variants.items()
        if name in PROMPTED
    }
    if prices.requests_per_day:
        hosting = round(1000 * prices.hosting_per_month / (DAYS_PER_MONTH * prices.requests_per_day), 4)
        hosted = {TUNED, *({CHAMPION} & variants.keys())} - managed.keys()
        per_1000 |= dict.fromkeys((name for name in (TUNED, CHAMPION) if name in hosted), hosting)
    for name, provider in managed.items():
        figures = variants[name]
        price = answer_cost(figures["prompt_tokens"], figures["completion_tokens"], provider)
        per_1000 |= {} if price is None else {name: round(1000 * price, 4)}
    return {
        "currency": prices.currency,
        "per_1000": per_1000,
        "requests_per_day": prices.requests_per_day,
        "prompted_price": prices.prompted_price,
        "by_token": list(managed),
    }
