"""What the job of a search gets and returns: the description in job.json, and the content of search.json.

result = launch.run("finetune_pipeline.train.search.job", spec, SearchResult, folder, report, backend)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.config import Search
from finetune_pipeline.train.spec import TrainingSpec

State = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class SearchSpec(JobData):
    """`training`: the declared training, whose rules a trial changes; `folder`: an absolute path, where finished trials
    are kept until the search ends."""

    training: TrainingSpec
    search: Search
    folder: Path


@dataclass(frozen=True)
class TrialRecord(JobData):
    """One finished trial, the first has number 1. `values`: by the names in task.yaml. `loss`, `score` and
    `reward_accuracy`: of the validation rows, of the weights that the training would keep; of a pruned trial only the
    loss, at its last check. `checks`: the validation loss at each check. `reason`: why it failed."""

    number: int
    state: State
    values: dict[str, Any]
    loss: float | None = None
    score: float | None = None
    reward_accuracy: float | None = None
    checks: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    rows: int = 0
    reason: str = ""
    mlflow_run_id: str | None = None


@dataclass(frozen=True)
class SearchResult(JobData):
    """search.json. `declared`: false where the task has no search; then there is nothing else but `inputs`: content
    hashes, so that a change of the data is one of this asset in any case (graph.py). `best`: the number of the best
    trial. `importance`: the share of each parameter in the differences between completed trials, {} with too
    few of them. `as_declared`: what of the first trial is declared. `interrupted`: how often a trial ended with a
    killed process or a canceled run. `limited`: whether `search.hours` ended the search."""

    declared: bool
    inputs: dict[str, str] = field(default_factory=dict)
    metric: str = "loss"
    checks: int = 0
    trials: tuple[TrialRecord, ...] = ()
    best: int | None = None
    importance: dict[str, float] = field(default_factory=dict)
    as_declared: dict[str, Any] = field(default_factory=dict)
    logarithmic: tuple[str, ...] = ()
    validation_rows: int = 0
    interrupted: int = 0
    limited: bool = False
    mlflow_run_id: str | None = None
    mlflow_experiment_id: str | None = None

    @property
    def best_trial(self) -> TrialRecord | None:
        return next((trial for trial in self.trials if trial.number == self.best), None)

    def states(self) -> dict[str, int]:
        """The number of trials by state."""
        return {state: sum(trial.state == state for trial in self.trials) for state in ("complete", "pruned", "failed")}
