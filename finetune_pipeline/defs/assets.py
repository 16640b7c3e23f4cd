"""The rows of graph.py as Dagster assets, one set a task: a shell opens the task, makes one asset, reports metadata.

The declaration is read again at run time, so that an edit of task.yaml counts without a reload of the code location.
"""

from typing import Any

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from finetune_pipeline.config.addresses import address
from finetune_pipeline.defs.orphans import mark
from finetune_pipeline.defs.reporter import DagsterReporter, console
from finetune_pipeline.errors import FinetuneError, JobCancelled
from finetune_pipeline.graph import STEPS, Step
from finetune_pipeline.materialize import materialize, open_task
from finetune_pipeline.records import Artifact, Check

STOPPED = "stopped on request; what was finished is kept, and a training goes on from its checkpoint"


def task_assets(name: str) -> list[dg.AssetsDefinition]:
    """All assets of the task `name`, with its name as key prefix and group."""
    return [_asset(name, step) for step in STEPS]


def _asset(name: str, step: Step) -> dg.AssetsDefinition:
    key = dg.AssetKey([name, step.asset])
    before = dict.fromkeys((*step.needs, *step.after, *(gate for gate, _ in step.gates)))
    check = dg.AssetCheckSpec(step.check, asset=key, blocking=step.blocking) if step.check else None

    @dg.asset(
        key=key,
        deps=[dg.AssetKey([name, other]) for other in before],
        group_name=name,
        description=step.description,
        kinds=set(step.kinds),
        code_version=step.version,
        check_specs=[check] if check else [],
    )
    def shell(context: dg.AssetExecutionContext) -> dg.MaterializeResult:  # type: ignore[type-arg]
        artifact = _make(context, name, step.asset)
        return dg.MaterializeResult(
            metadata=_metadata(name, artifact),
            data_version=dg.DataVersion(artifact.content_hash),
            check_results=[_check(step, artifact)] if check else [],
        )

    return shell


def _make(context: dg.AssetExecutionContext, name: str, asset: str) -> Artifact:
    terminal = console.get()
    mark(context.instance, context.run_id)
    try:
        if terminal is not None:
            terminal.begins(asset)
        task, store = open_task(name)
        artifact = materialize(asset, task, store, DagsterReporter(context))
        if terminal is not None:
            terminal.finished(asset, artifact)
        return artifact
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        if terminal is not None:
            terminal.failed(asset, JobCancelled(STOPPED, "run the same command again to go on"))
        raise
    except FinetuneError as error:
        if terminal is not None:
            terminal.failed(asset, error)
        raise dg.Failure(
            description=str(error), allow_retries=False, metadata={"exit_code": error.exit_code}
        ) from error


def _check(step: Step, artifact: Artifact) -> dg.AssetCheckResult:
    verdict = artifact.verdict
    if verdict is None:
        return dg.AssetCheckResult(check_name=step.check, passed=False, description="the asset stored no verdict")
    severity = dg.AssetCheckSeverity.ERROR if step.blocking else dg.AssetCheckSeverity.WARN
    metadata = {"judged": verdict.about, "checks": _table(verdict.checks), **_plain(verdict.figures)}
    return dg.AssetCheckResult(
        check_name=step.check, passed=verdict.passed, severity=severity, description=verdict.summary, metadata=metadata
    )


def _metadata(name: str, artifact: Artifact) -> dict[str, Any]:
    links: dict[str, Any] = {
        "folder": dg.MetadataValue.path(str(artifact.folder)),
        "desk": dg.MetadataValue.url(f"{address('FINETUNE_DESK_URL')}/tasks/{name}"),
        "content": artifact.content_hash,
        "seconds": float(artifact.manifest["seconds"]),
    }
    if artifact.asset == "data_quality":
        links["data_docs"] = dg.MetadataValue.url(f"{address('FINETUNE_DESK_URL')}/tasks/{name}/docs/index.html")
    run_id = artifact.summary.get("mlflow_run_id")
    if run_id:
        links["mlflow"] = dg.MetadataValue.url(f"{address('FINETUNE_MLFLOW_URL')}/#/search/runs/{run_id}")
    return {**_plain(artifact.summary), **links}


def _plain(figures: Any) -> dict[str, Any]:
    """Figures as Dagster metadata: numbers are plotted over runs, flat mappings are read best as a small table."""
    shown: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, dict) and value and all(isinstance(v, int | float | str) for v in value.values()):
            rows = "\n".join(f"| {k} | {v} |" for k, v in value.items())
            shown[key] = dg.MetadataValue.md(f"| what | figure |\n|---|---|\n{rows}")
        elif isinstance(value, dict | list | tuple):
            shown[key] = dg.MetadataValue.json(value)
        elif value is not None:
            shown[key] = value
    return shown


def _table(checks: tuple[Check, ...]) -> Any:
    records = [
        dg.TableRecord(
            {"check": c.name, "holds": "yes" if c.passed else "NO", "expected": c.expected, "observed": c.observed}
        )
        for c in checks
    ]
    return dg.MetadataValue.table(records) if records else "none"
