"""The asset `training_search`: trials in a separate process, compared on the validation rows; made before `adapter`.

    search.json    spec.SearchResult: every trial, the best one, the importance of the parameters
    report.html    the same for people (report.py)

Without `search` in the declaration nothing runs, and both files say so. Finished trials of an interrupted run are kept
beside the artifacts; another run with the same key goes on after them.
"""

from __future__ import annotations

import json
from dataclasses import replace

from finetune_pipeline.backends import launch
from finetune_pipeline.config import Search
from finetune_pipeline.records import Json
from finetune_pipeline.store import StageContext, StageResult
from finetune_pipeline.train.assets import training_spec
from finetune_pipeline.train.search.choice import FILE
from finetune_pipeline.train.search.placement import search_backend
from finetune_pipeline.train.search.report import Heading, headline, page, value_text
from finetune_pipeline.train.search.spec import SearchResult, SearchSpec

JOB = "finetune_pipeline.train.search.job"


def training_search(context: StageContext) -> StageResult:
    """Search, or go on after the trials of an interrupted run with the same key; without a declared search, say so.
    DeclarationError where the backend cannot run it."""
    search = context.task.search
    if search is None:
        result = SearchResult(declared=False)
        _write(context, result)
        return StageResult({"search": "not declared"})
    backend = search_backend(context.task.train)
    folder = context.store.unfinished("training_search", "search", context.key).absolute()
    spec = SearchSpec(training_spec(context, folder), search, folder)
    result = launch.run(JOB, spec, SearchResult, folder, context.report, backend, context.task.train.threads)
    _write(context, result)
    return StageResult(_summary(result, search), unfinished=folder)


def _write(context: StageContext, result: SearchResult) -> None:
    result = replace(result, inputs={name: artifact.content_hash for name, artifact in context.inputs.items()})
    base = context.inputs["base_model"].json("base_model.json")
    heading = Heading(context.task.name, str(base["id"]), context.now)
    (context.out / FILE).write_text(json.dumps(result.to_json(), indent=1), "utf-8")
    (context.out / "report.html").write_text(page(heading, result), "utf-8")
    context.report.log(headline(result))


def _summary(result: SearchResult, search: Search) -> dict[str, Json]:
    best = result.best_trial
    assert best is not None  # noqa: S101 (the job raises without one)
    return {
        "trials": len(result.trials),
        **result.states(),
        "metric": search.metric,
        "best_trial": best.number,
        "validation_loss": best.loss,
        "validation_score": best.score,
        "validation_reward_accuracy": best.reward_accuracy,
        "best_values": {name: value_text(value) for name, value in best.values.items()},
        "seconds_of_trials": round(sum(trial.seconds for trial in result.trials), 1),
        "mlflow_run_id": result.mlflow_run_id,
        "mlflow_experiment_id": result.mlflow_experiment_id,
    }
