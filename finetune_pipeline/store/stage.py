"""The argument and the result of a stage's function.

def clean_examples(context: StageContext) -> StageResult: ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_pipeline.config import Task
from finetune_pipeline.records import SILENT, Artifact, Json, Reporter, Verdict
from finetune_pipeline.store.task_store import TaskStore


@dataclass(frozen=True)
class StageContext:
    """The declaration, the finished inputs, and an empty folder for the output.

    `out` becomes the artifact when the function returns, and is removed when it raises. `store` is for data beside the
    artifacts (checkpoints, reviewers' verdicts). `key` is the key of the artifact. `now` is the time of the run (UTC,
    ISO 8601): stages do not read the clock for what they record. `fingerprint` is the value of the function that
    `Step.external.fingerprint` names, the same that is part of the key.
    """

    task: Task
    store: TaskStore
    inputs: Mapping[str, Artifact]
    out: Path
    key: str
    now: str
    report: Reporter = SILENT
    fingerprint: Json = ""


@dataclass(frozen=True)
class StageResult:
    """`summary`: figures for people, shown in Dagster, the desk and `finetune status`. `verdict`: that of a gate; a
    failed verdict is stored like a passed one. `unfinished`: a folder with checkpoints or partial answers, from which
    an interrupted run would continue; it is removed after the artifact is committed."""

    summary: Mapping[str, Json]
    verdict: Verdict | None = None
    unfinished: Path | None = None
