"""What a managed training leaves: provider.json (which model, made of what, at what price) and training.json.

record = read_record(adapter)        # None for an adapter that was trained on this machine
record.model                         # "ft:gpt-4.1-mini-2025-04-14:acme:parcels:9x1"
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Provider
from finetune_pipeline.errors import reading
from finetune_pipeline.providers.cost import TrainingCost

FILE = "provider.json"


@dataclass(frozen=True)
class ProviderModel(JobData):
    """A model that answers through an API: `model` is its name in requests, `base_url` where it was trained (None: a
    model that is not tuned)."""

    provider: Provider
    model: str
    base_url: str | None = None


@dataclass(frozen=True)
class ProviderRecord(JobData):
    """provider.json. `provider`: the declaration; `base_url`: where it was trained; `model`: the tuned model's name;
    `files`: split -> id; times in seconds since 1970; `events` as the provider reported them,
    without metrics. No key, no credentials.
    """

    provider: Provider
    base_url: str
    model: str
    job: str
    files: dict[str, str]
    trained_tokens: int | None
    estimate: TrainingCost
    cost: TrainingCost
    created_at: int
    finished_at: int | None
    checks: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def answering(self, declared: Provider | None) -> ProviderModel:
        """The tuned model for requests, with the operational settings of `declared` (prices, deployment), which may
        have changed since the training."""
        current = {name: getattr(declared, name) for name in Provider.OPERATIONAL} if declared else {}
        provider = self.provider.model_copy(update=current)
        return ProviderModel(provider, provider.deployment or self.model, self.base_url)


@dataclass(frozen=True)
class ProviderTraining(JobData):
    """training.json. Losses are the provider's, in nats per trained token; None where it reports none.
    `validation_compared` says what the two validation losses are of; `resumed`: an earlier run had created the job."""

    mlflow_run_id: str | None
    mlflow_experiment_id: str | None
    provider: str
    provider_model: str
    steps: int
    seconds: float
    rows: int
    loss_first: float | None
    loss_last: float | None
    validation_loss_start: float | None
    validation_loss: float | None
    validation_compared: str
    trained_tokens: int | None
    cost: float | None
    cost_estimated: float | None
    currency: str
    resumed: bool


def is_managed(folder: Path) -> bool:
    """Whether the adapter in this folder is a provider's model."""
    return (folder / FILE).exists()


def read_record(folder: Path) -> ProviderRecord | None:
    """The record in an adapter's folder; None where it was trained on this machine. StorageError when damaged."""
    path = folder / FILE
    if not path.exists():
        return None
    with reading(path, f"delete {folder} and run again"):
        plain = json.loads(path.read_text("utf-8"))
    return ProviderRecord.from_json(plain)
