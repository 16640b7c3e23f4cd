"""What a managed training is estimated to cost before it begins, and what it cost.

    estimate(train_tokens=182_000, rows=754, provider)
    # TrainingCost(tokens=546000, epochs=3, epochs_declared=True, price=5.0, cost=2.73, currency="USD")

Tokens are counted with the local base model's tokenizer, which is not the provider's: an estimate, usually within some
tens of percent for English text. The bill is by the provider's own count (`trained_tokens` of the job).
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Provider
from finetune_pipeline.errors import DataError

# How OpenAI chooses the number of epochs where none is declared (its cookbook, "Data preparation and analysis for chat
# model fine-tuning"): three, fewer for many rows and more for few.
TARGET_EPOCHS, MIN_EPOCHS, MAX_EPOCHS = 3, 1, 25
MIN_ROWS, MAX_ROWS = 100, 25_000
MILLION = 1_000_000


@dataclass(frozen=True)
class TrainingCost(JobData):
    """Trained tokens, and their price: `price` of a million tokens, `cost` in `currency`; both None where no price is
    declared. `epochs_declared`: false where the provider chooses the number of epochs, and `epochs` is assumed."""

    tokens: int | None
    epochs: int | None
    epochs_declared: bool
    price: float | None
    cost: float | None
    currency: str

    def __str__(self) -> str:
        price = "no price is declared" if self.cost is None else f"{self.cost:.2f} {self.currency}"
        return f"{'?' if self.tokens is None else format(self.tokens, ',')} tokens, {price}"


def estimate(train_tokens: int, rows: int, provider: Provider) -> TrainingCost:
    """The cost of training on `rows` rows with `train_tokens` tokens in all. Validation rows are not billed."""
    declared = provider.hyperparameters.n_epochs
    epochs = default_epochs(rows) if declared == "auto" else int(declared)
    return _priced(train_tokens * epochs, epochs, declared != "auto", provider)


def actual(trained_tokens: int | None, epochs: int | None, provider: Provider) -> TrainingCost:
    """The cost by the provider's count of trained tokens; unknown where it reports none."""
    return _priced(trained_tokens, epochs, provider.hyperparameters.n_epochs != "auto", provider)


def default_epochs(rows: int) -> int:
    """The number of epochs that OpenAI chooses for so many rows."""
    if rows * TARGET_EPOCHS < MIN_ROWS:
        return min(MAX_EPOCHS, MIN_ROWS // max(1, rows))
    if rows * TARGET_EPOCHS > MAX_ROWS:
        return max(MIN_EPOCHS, MAX_ROWS // rows)
    return TARGET_EPOCHS


def require_within(cost: TrainingCost, provider: Provider) -> None:
    """DataError when the estimate is above `max_cost`."""
    if provider.max_cost is not None and cost.cost is not None and cost.cost > provider.max_cost:
        raise DataError(
            f"the training is estimated at {cost}, and `train.provider.max_cost` is {provider.max_cost:.2f} "
            f"{provider.currency}",
            "raise `max_cost`, declare fewer epochs (`hyperparameters.n_epochs`), or train on fewer or shorter rows; "
            "nothing was uploaded",
        )


def answer_cost(prompt_tokens: float, completion_tokens: float, provider: Provider) -> float | None:
    """The price of an answer with so many tokens; None unless both prices are declared."""
    prompt, completion = provider.price_per_million_prompt_tokens, provider.price_per_million_completion_tokens
    if prompt is None or completion is None:
        return None
    return (prompt_tokens * prompt + completion_tokens * completion) / MILLION


def _priced(tokens: int | None, epochs: int | None, declared: bool, provider: Provider) -> TrainingCost:
    price = provider.price_per_million_training_tokens
    cost = None if price is None or tokens is None else round(tokens * price / MILLION, 4)
    return TrainingCost(tokens, epochs, declared, price, cost, provider.currency)
