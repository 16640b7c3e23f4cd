"""What a training job gets and returns: the description in job.json, and the content of training.json.

result = launch.run("finetune_pipeline.train.job", spec, TrainingResult, folder, report, backend)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import AnswerFormat, Train
from finetune_pipeline.config.section import flat

OPERATIONAL = ("train.threads", "train.checkpoint_seconds")  # of a checkpoint's identity: they change no weight


@dataclass(frozen=True)
class SearchChoice(JobData):
    """What a training takes from the search: the `values` of its best `trial` of `trials`, by the `metric` of the
    validation rows; `search`: content hash of training_search."""

    trial: int
    trials: int
    metric: str
    values: dict[str, Any]
    search: str


@dataclass(frozen=True)
class TrainingSpec(JobData):
    """All paths are absolute. `base`: folder of the base model, `base_id` and `base_sha256`: its name and the hash of
    its weights in base_model.json; `train` and `validation`: JSONL files of examples; `system`, `answer`: the task's
    system prompt and answer format; `checkpoints` and `out`: output folders; `params`: what the MLflow run shows,
    free-form; `dataset_name` and `dataset_digest`: the split, in MLflow; `shard`: whether several processes hold a part
    of the weights each, and not all of them; `origins`: settings that the declaration did not give, and where they are
    from (defaults.py); `share` and `without_sources`: of the training rows (row_selection.py); `choice`: where the
    search gave settings."""

    task: str
    base: Path
    base_id: str
    train: Path
    validation: Path
    system: str
    answer: AnswerFormat
    rules: Train
    checkpoints: Path
    out: Path
    params: dict[str, Any]
    dataset_name: str
    dataset_digest: str
    shard: bool = False
    base_sha256: str = ""
    origins: dict[str, str] = field(default_factory=dict)
    share: float = 1.0
    without_sources: tuple[str, ...] = ()
    choice: SearchChoice | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result, by the names in task.yaml: settings, base model, system prompt, data. A checkpoint
        with another identity is not resumed (checkpoint.py)."""
        named: dict[str, Any] = {
            "base": self.base_id,
            "base weights": self.base_sha256,
            "data": self.dataset_digest,
            "prompt.system": self.system,
        }
        selected = {"row_share": self.share, "without_sources": self.without_sources}
        named |= {name: value for name, value in selected.items() if value not in (1.0, ())}  # all rows: as without
        result: dict[str, Any] = json.loads(json.dumps(flat(self.rules.result_values(), "train.") | named))
        return {name: value for name, value in result.items() if name not in OPERATIONAL}


@dataclass(frozen=True)
class TrainingResult(JobData):
    """training.json. `forward`: "packed" or "padded" rows. `kept_step`: the step whose weights are the result;
    `skipped_steps`: steps without a finite gradient, which were not applied. Losses are those of the objective (sft:
    means per learned token in nats): `loss_first` of the first step, `loss_last` of the last five, `validation_loss` at
    the kept step, `validation_loss_last` after the last one. `overfits_from`: the step from which the validation loss
    rose while the training loss fell (history.py). `validation_score`: share of right answers,
    `validation_reward_accuracy`: share of pairs whose chosen completion has the higher reward; None where not measured.
    `general_divergence`: mean KL from the base model over the last 20 steps. `tokens_per_second`: tokens that were
    computed, median of the steps. `resumed_at`: the step of the checkpoint, 0 for a new training; `peak_mb`: memory of
    the first process in MB. `learning_rate`: the peak; `origins`: as in the spec; `search`: its `choice`."""

    mlflow_run_id: str | None
    mlflow_experiment_id: str | None
    method: str
    objective: str
    forward: str
    steps: int
    kept_step: int
    skipped_steps: int
    seconds: float
    tokens_per_second: float
    rows: int
    loss_first: float
    loss_last: float
    validation_loss_start: float
    validation_loss: float
    validation_score: float | None
    validation_reward_accuracy: float | None
    general_divergence: float | None
    resumed_at: int
    trainable_parameters: int
    precision: str
    shared_prefix_tokens: int
    supervised_tokens: int
    peak_mb: int = 0
    processes: int = 1
    validation_loss_last: float | None = None
    overfits_from: int | None = None
    learning_rate: float | None = None
    origins: dict[str, str] = field(default_factory=dict)
    search: SearchChoice | None = None
