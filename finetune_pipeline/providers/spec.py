"""What the job of a managed training is told.

{"task": "parcels", "provider": {"model": "gpt-4.1-mini-2025-04-14", …}, "rows": {"train": "…/train.jsonl"}, …}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Provider


@dataclass(frozen=True)
class ProviderSpec(JobData):
    """All paths are absolute. `rows`: split ("train", "validation") -> file of examples; `base`: folder of
    the local base model, for its tokenizer; `label` identifies this training at the provider; `params`: what the
    MLflow run shows."""

    task: str
    provider: Provider
    rows: dict[str, Path]
    base: Path
    system: str
    seed: int
    label: str
    folder: Path
    out: Path
    params: dict[str, Any]
    dataset_name: str
    dataset_digest: str
