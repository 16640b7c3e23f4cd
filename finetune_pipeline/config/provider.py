"""`train.provider`: training by a managed service that speaks OpenAI's fine-tuning API, instead of on this machine.

    train:
      provider:
        model: gpt-4.1-mini-2025-04-14
        hyperparameters: {n_epochs: 3}
        price_per_million_training_tokens: 5.0

The key is never in the declaration: `key_variable` names the environment variable that holds it.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from finetune_pipeline.config.addresses import is_loopback
from finetune_pipeline.config.credentials import without_credentials
from finetune_pipeline.config.section import Section

Auto = Literal["auto"]
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


class Hyperparameters(Section):
    """Hyperparameters of the provider's training; `auto`: the provider chooses from the number of rows."""

    n_epochs: int | Auto = Field("auto", description="Passes over the training rows; the price is per pass.")
    batch_size: int | Auto = Field("auto", description="Rows per optimizer step.")
    learning_rate_multiplier: float | Auto = Field("auto", description="Factor of the provider's own learning rate.")
    beta: float | Auto | None = Field(
        None, description="DPO only: weight of the penalty for leaving the reference model; default: the provider's."
    )

    @field_validator("n_epochs", "batch_size", "learning_rate_multiplier", "beta")
    @classmethod
    def _positive(cls, value: float | str | None) -> float | str | None:
        if isinstance(value, int | float) and value <= 0:
            raise ValueError("give a number above 0, or `auto`")
        return value


class Provider(Section):
    """A managed training. The rows and the system prompt are sent to the provider. The local base model (`base`) is
    then not trained: its tokenizer measures rows and estimates the cost, and the prompted baselines are answered by
    the provider's `model`, because prompting that model is what a team would do instead of tuning it."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset(
        {
            "key_variable",
            "suffix",
            "deployment",
            "structured_outputs",
            "min_examples",
            "max_example_tokens",
            "max_file_mb",
            "price_per_million_training_tokens",
            "price_per_million_prompt_tokens",
            "price_per_million_completion_tokens",
            "currency",
            "max_cost",
            "requests_at_once",
            "poll_seconds",
        }
    )

    name: Literal["openai"] = Field(
        "openai", description="Wire format: OpenAI's files, fine-tuning and chat completions API."
    )
    model: str = Field(
        min_length=1, description="Name of the provider's model that is tuned, with its date or version."
    )
    base_url: str | None = Field(
        None,
        description="Address of the API, such as https://RESOURCE.openai.azure.com/openai/v1/; default: "
        "$OPENAI_BASE_URL, else OpenAI's. Only https, or loopback.",
    )
    key_variable: str = Field(
        "OPENAI_API_KEY", description="Name of the environment variable that holds the API key; never the key itself."
    )
    method: Literal["supervised", "dpo"] = Field(
        "supervised",
        description="supervised: learn the completions; dpo: prefer the chosen to the rejected completion, needs "
        "preference rows.",
    )
    suffix: str | None = Field(
        None, min_length=1, max_length=64, description="Part of the tuned model's name; default: the task's name."
    )
    deployment: str | None = Field(
        None,
        description="Name under which the tuned model answers, where it has to be deployed first (Azure OpenAI); "
        "default: the tuned model's own name.",
    )
    hyperparameters: Hyperparameters = Hyperparameters()
    structured_outputs: bool = Field(
        True,
        description="Prompted baselines of a label task choose their label by a JSON schema (`response_format`), which "
        "is the most favorable way to prompt; false for a server without it.",
    )
    min_examples: int = Field(10, ge=1, description="Fewest training rows that the provider accepts.")
    max_example_tokens: int = Field(
        65_536, ge=1, description="Most tokens of a row that the provider trains on; more would be cut off there."
    )
    max_file_mb: int = Field(512, ge=1, description="Largest file that the provider accepts, in MB (10^6 bytes).")
    price_per_million_training_tokens: float | None = Field(
        None, ge=0, description="Price of a million trained tokens; without it no cost is estimated."
    )
    price_per_million_prompt_tokens: float | None = Field(
        None, ge=0, description="Price of a million tokens of prompts to the tuned model."
    )
    price_per_million_completion_tokens: float | None = Field(
        None, ge=0, description="Price of a million tokens of the tuned model's answers."
    )
    currency: str = Field("USD", description="Currency of these prices.")
    max_cost: float | None = Field(
        None, gt=0, description="A training whose estimated cost is above this is refused before anything is uploaded."
    )
    requests_at_once: int = Field(8, ge=1, le=256, description="Requests for answers that are open at the same time.")
    poll_seconds: float = Field(10.0, gt=0, le=600, description="Seconds between two looks at the job.")

    @field_validator("base_url")
    @classmethod
    def _safe_address(cls, url: str | None) -> str | None:
        if url is not None and (problem := address_problem(url)):
            raise ValueError(problem)
        return url

    @field_validator("key_variable")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not VARIABLE.fullmatch(name):
            raise ValueError(
                "give the NAME of an environment variable (capital letters, digits and _), not a key; a key that was "
                "written into a file should be replaced at the provider"
            )
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Provider:
        if self.max_cost is not None and self.price_per_million_training_tokens is None:
            raise ValueError("`max_cost` needs `price_per_million_training_tokens`: without it no cost is known before")
        if self.hyperparameters.beta is not None and self.method != "dpo":
            raise ValueError("`hyperparameters.beta` is for `method: dpo`; remove it, or declare that method")
        return self


def address_problem(url: str) -> str | None:
    """What makes `url` unsafe or unusable as the address of a provider; None if nothing does."""
    if without_credentials(url) != url:
        return "the address holds credentials: put the key into the environment variable that `key_variable` names"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "give an address that begins with https://"
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        return "the key and the rows would be sent unencrypted: use https:// (http:// only on loopback)"
    return None
