"""`finetune plan TASK`: the plan of the training on the terminal, and what the last training took, if there is one."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_pipeline.config import Task
from finetune_pipeline.errors import StorageError
from finetune_pipeline.models.gpu_fit import gpu_rows
from finetune_pipeline.models.trained_weights import METHODS
from finetune_pipeline.statistics.formatting import duration
from finetune_pipeline.store import TaskStore
from finetune_pipeline.train.plan.assets import FILE
from finetune_pipeline.train.plan.report import headline, memory_rows, method_rows, time_rows
from finetune_pipeline.train.plan.spec import TrainingPlan
from finetune_pipeline.train.spec import TrainingResult

STYLES = {"FITS": "green", "TIGHT": "yellow", "TOO BIG": "red"}


def shown(task: Task, store: TaskStore) -> RenderableType:
    """The current plan. StorageError when there is none, or plan.json is damaged."""
    artifact = store.current("training_plan")
    if artifact is None:
        raise StorageError(f"{task.name} has no plan", f"make it with `finetune plan {task.name}`")
    if task.train.provider is not None:
        return Text(str((artifact.verdict and artifact.verdict.summary) or ""))
    with artifact.reading(FILE):
        plan = TrainingPlan.from_json(artifact.json(FILE))
    currency = task.suitability.currency
    parts = [
        Text(headline(plan, currency), f"bold {STYLES[plan.fit.verdict]}"),
        *([Text(f"before it a search of {task.search.trials} trials, each at most as long")] if task.search else []),
        Text(f"method: {plan.recommended_why}", "dim"),
        Text(_limits(plan), "dim"),
        _table("time", time_rows(plan)),
        _table("memory, MB", memory_rows(plan)),
        _table("methods on this device", method_rows(plan)),
        _table("GPUs: how many, time, price (* gradient checkpointing)", gpu_rows(plan.gpus, currency), ("", *METHODS)),
    ]
    if (measured := _measured(plan, store)) is not None:
        parts.append(measured)
    parts.append(Text(f"\npage: {artifact.path('report.html')}", "dim"))
    return Group(*parts)


def _limits(plan: TrainingPlan) -> str:
    if plan.most_tokens is None:
        return "not even the longest row fits"
    disk = f"checkpoints: about {plan.checkpoints_mb:,.0f} MB of {plan.device.disk_mb:,.0f} MB on the disk"
    return f"the largest train.max_tokens_per_batch that fits: {plan.most_tokens:,}; {disk}"


def _table(title: str, rows: list[tuple[str, ...]], head: tuple[str, ...] = ()) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    if head:
        grid.add_row(*(Text(name, "dim") for name in head))
    for row in rows:
        grid.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
    return Group(Text(f"\n{title}", "bold"), grid)


def _measured(plan: TrainingPlan, store: TaskStore) -> RenderableType | None:
    """What the current adapter's training took, beside the prediction; None without one, or after an interruption."""
    artifact = store.current("adapter")
    if artifact is None or "training.json" not in artifact.manifest["files"]:
        return None
    with artifact.reading("training.json"):
        training = TrainingResult.from_json(artifact.json("training.json"))
    if training.resumed_at:
        return None
    seconds = float(artifact.manifest["seconds"])
    text = f"the last training took {duration(seconds)} and {training.peak_mb:,} MB ({training.steps:,} steps); "
    text += f"this plan: {duration(plan.times.total)} and {plan.fit.memory.total_mb:,.0f} MB ({plan.steps:,} steps)"
    return Text(f"\n{text}", "dim")
