"""What a training job gets and returns: the description in job.json, and the content of training.json.

result = local.run("finetune_pipeline.train.job", spec, TrainingResult, folder, report)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Train


@dataclass(frozen=True)
class TrainingSpec(JobData):
    """All paths are absolute. `base`: folder of the base model, `base_id`: its name in base_model.json; `train` and
    `validation`: JSONL files of examples; `system`: the task's system prompt; `checkpoints` and `out`: output folders;
    `params`: what the MLflow run shows, free-form; `dataset_name` and `dataset_digest`: the split, in MLflow."""

    task: str
    base: Path
    base_id: str
    train: Path
    validation: Path
    system: str
    rules: Train
    checkpoints: Path
    out: Path
    params: dict[str, Any]
    dataset_name: str
    dataset_digest: str


@dataclass(frozen=True)
class TrainingResult(JobData):
    """training.json. Losses are means per supervised token in nats: `loss_first` of the first step, `loss_last` of the
    last five. `general_divergence`: mean KL from the base model over the last 20 steps, None without general texts.
    `tokens_per_second` counts rows with their whole prompt, as a trainer without prefix sharing computes them.
    `resumed_at`: the step of the checkpoint, 0 for a new training; `peak_mb`: memory of the process in MB."""

    mlflow_run_id: str | None
    mlflow_experiment_id: str | None
    steps: int
    seconds: float
    tokens_per_second: float
    rows: int
    loss_first: float
    loss_last: float
    validation_loss_start: float
    validation_loss: float
    general_divergence: float | None
    resumed_at: int
    trainable_parameters: int
    precision: str
    shared_prefix_tokens: int
    supervised_tokens: int
    peak_mb: int = 0
