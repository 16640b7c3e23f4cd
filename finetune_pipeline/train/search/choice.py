"""What the training takes from the search: the values of its best trial.

choice = choice_of(context.inputs["training_search"])     # SearchChoice(trial=7, trials=20, …); None without a search
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_pipeline.records import Artifact
from finetune_pipeline.train.search.spec import SearchResult, TrialRecord
from finetune_pipeline.train.spec import SearchChoice

FILE = "search.json"


def choice_of(artifact: Artifact) -> SearchChoice | None:
    """StorageError when search.json is damaged."""
    with artifact.reading(FILE):
        result = SearchResult.from_json(artifact.json(FILE))
    best = result.best_trial
    if best is None:
        return None
    return SearchChoice(best.number, len(result.trials), result.metric, best.values, artifact.content_hash)


def best_of(trials: Sequence[TrialRecord], metric: str) -> TrialRecord | None:
    """The completed trial that is best in the metric; of equal ones, that with the lowest loss, then the first. One
    without a finite validation loss is not chosen."""
    usable = [trial for trial in trials if trial.state == "complete" and math.isfinite(loss_of(trial))]
    return min(usable, key=lambda trial: (cost(trial, metric), loss_of(trial)), default=None)


def loss_of(trial: TrialRecord) -> float:
    """The validation loss; infinite where there is none, or none that is a number."""
    return math.inf if trial.loss is None or math.isnan(trial.loss) else trial.loss


def cost(trial: TrialRecord, metric: str) -> float:
    """What a search minimizes: the loss, or the share that is not right."""
    if metric == "loss":
        return loss_of(trial)
    return 1.0 - ((trial.score if metric == "score" else trial.reward_accuracy) or 0.0)
