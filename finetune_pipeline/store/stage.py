"""What the function of a stage gets, and what it returns.

def clean_examples(context: StageContext) -> StageResult: ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_pipeline.config import Task
from finetune_pipeline.records import Artifact, Json, Reporter, Silent, Verdict
from finetune_pipeline.store.task_store import TaskStore


@dataclass(frozen=True)
class StageContext:
    """What a stage's function gets: the declaration, its finished inputs, and an empty folder to write into.

    `out` becomes the artifact when the function returns, and vanishes when it raises; `store` is for what lives
    beside the artifacts (checkpoints, verdicts as they come in); `key` names the work (the same work, the same key);
    `now` is the time of the run (UTC, ISO 8601), so that no stage reads the clock for what it records; `fingerprint`
    is the value that `Step.outside` gave, the very one that is in the key.
    """

    task: Task
    store: TaskStore
    inputs: Mapping[str, Artifact]
    out: Path
    key: str
    now: str
    report: Reporter = field(default_factory=Silent)
    fingerprint: Json = ""


@dataclass(frozen=True)
class StageResult:
    """What a stage's function gives back: figures for people (shown in Dagster, the desk and `finetune status`), and
    the verdict where the asset is a gate or has one. A failed verdict is stored like a passed one: it is data.

    `unfinished`: the folder from which the work would go on (checkpoints, partial answers); it is removed when the
    artifact is there."""

    summary: Mapping[str, Json]
    verdict: Verdict | None = None
    unfinished: Path | None = None
