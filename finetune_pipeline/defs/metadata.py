"""Metadata of an asset's definition and of its materializations, under the keys that Dagster's UI knows.

reused                 false; true where nothing was made, then `seconds` and `made_at` are of the earlier run
dagster/row_count      2474
dagster/column_schema  id string, messages array, source string, ...
dagster/code_references   the function of the stage that makes it
"""

import base64
import importlib.util
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import dagster as dg

from finetune_pipeline.config import Task
from finetune_pipeline.config.addresses import address, mlflow_page
from finetune_pipeline.graph import Step
from finetune_pipeline.materialize import Materialized, declared_values
from finetune_pipeline.records import Artifact, read_jsonl
from finetune_pipeline.train import token_view
from finetune_pipeline.train.history_page import loss_chart

LEARNED_ROWS = 3  # rows whose learned tokens are in the metadata; ten are on the page in the desk
SCHEMA_ROWS = 50  # rows that are looked at for the columns' types
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def definition_metadata(step: Step, task: Task) -> dict[str, Any]:
    """What is known without a run: the declared sections that the asset depends on, and where its code is."""
    found: dict[str, Any] = {"dagster/code_references": _code_references(step)}
    if step.config_sections:
        found["declaration"] = dg.MetadataValue.json(declared_values(step, task))
    return found


@cache
def _code_references(step: Step) -> dg.CodeReferencesMetadataValue:
    """The file and line of the stage's function, found without importing it (it may need torch)."""
    module, name = step.make.split(":")
    spec = importlib.util.find_spec(module)
    path = Path(spec.origin) if spec and spec.origin else Path(module)
    lines = path.read_text("utf-8").splitlines()
    line = next((n for n, text in enumerate(lines, 1) if re.match(rf"def {name}\b", text)), 1)
    with beta_features():
        reference = dg.LocalFileCodeReference(file_path=str(path), line_number=line, label=step.make)
        return dg.CodeReferencesMetadataValue(code_references=[reference])


@contextmanager
def beta_features() -> Iterator[None]:
    """Without the warning that Dagster prints for each use of what it calls beta (code references, observations)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        yield


def materialization_metadata(step: Step, task: Task, found: Materialized) -> dict[str, Any]:
    """What a run made or found: the stage's own figures, and where to read on."""
    artifact = found.artifact
    manifest = artifact.manifest
    return {
        **plain(artifact.summary),
        **_rows(step, artifact),
        **_links(task.name, artifact),
        **(_training(task.name, artifact) if artifact.asset in ("training_plan", "adapter") else {}),
        "reused": found.reused,
        "made_at": dg.MetadataValue.timestamp(datetime.fromisoformat(manifest["made_at"])),
        "seconds": float(manifest["seconds"]),
        "content_hash": artifact.content_hash,
        "declaration": dg.MetadataValue.json(manifest.get("declaration", {})),
    }


def _rows(step: Step, artifact: Artifact) -> dict[str, Any]:
    """How many rows the artifact has, over all of its files, and their columns."""
    if not step.rows:
        return {}
    paths = [artifact.path(name) for name in step.rows]
    first = itertools.islice(read_jsonl(paths[0]), SCHEMA_ROWS)
    return {"dagster/row_count": sum(map(_count, paths)), "dagster/column_schema": column_schema(first)}


def _count(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for line in lines if line.strip())


def column_schema(rows: Iterable[dict[str, Any]]) -> dg.TableSchema:
    """The columns of these rows with their JSON types; a column that is null in some rows is nullable."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for name, value in row.items():
            kinds.setdefault(name, set()).add(type(value))
    return dg.TableSchema(columns=[_column(name, found) for name, found in kinds.items()])


def _column(name: str, found: set[type]) -> dg.TableColumn:
    types = sorted(TYPES[kind] for kind in found if kind is not type(None))
    nullable = type(None) in found
    return dg.TableColumn(name, " or ".join(types) or "null", constraints=dg.TableColumnConstraints(nullable=nullable))


def _links(name: str, artifact: Artifact) -> dict[str, Any]:
    desk = f"{address('FINETUNE_DESK_URL')}/tasks/{name}"
    links: dict[str, Any] = {
        "folder": dg.MetadataValue.path(str(artifact.folder)),
        "desk": dg.MetadataValue.url(desk),
    }
    if artifact.asset == "data_quality":
        links["report"] = dg.MetadataValue.url(f"{desk}/reports/data_quality/report.html")
    experiment, run = artifact.summary.get("mlflow_experiment_id"), artifact.summary.get("mlflow_run_id")
    if experiment:
        links["mlflow"] = dg.MetadataValue.url(mlflow_page(experiment, run))
    return links


def _training(name: str, artifact: Artifact) -> dict[str, Any]:
    """Of a training or its plan: links to its pages in the desk, the losses as an image, and what is learned of a few
    rows."""
    desk = f"{address('FINETUNE_DESK_URL')}/tasks/{name}/reports/{artifact.asset}"
    shown: dict[str, Any] = {}
    files = artifact.manifest["files"]
    if "plan.json" in files:
        shown["plan"] = dg.MetadataValue.url(desk)
    if "training.html" in files:
        shown["training"] = dg.MetadataValue.url(desk)
    if "history.jsonl" in files and (svg := loss_chart(list(read_jsonl(artifact.path("history.jsonl"))))):
        image = base64.b64encode(svg.encode()).decode()
        shown["losses"] = dg.MetadataValue.md(f"![loss and validation loss](data:image/svg+xml;base64,{image})")
    if "tokens.json" in files:
        shown["tokens"] = dg.MetadataValue.url(f"{desk}?page=tokens.html")
        shown["learned_tokens"] = dg.MetadataValue.md(token_view.markdown(artifact.json("tokens.json"), LEARNED_ROWS))
    return shown


def plain(figures: Any) -> dict[str, Any]:
    """Figures as Dagster metadata: numbers are plotted over runs, flat mappings are read best as a small table."""
    shown: dict[str, Any] = {}
    for key, value in figures.items():
        if isinstance(value, dict) and value and all(isinstance(v, int | float | str) for v in value.values()):
            rows = "\n".join(f"| {k} | {v} |" for k, v in value.items())
            shown[key] = dg.MetadataValue.md(f"| name | value |\n|---|---|\n{rows}")
        elif isinstance(value, dict | list | tuple):
            shown[key] = dg.MetadataValue.json(value)
        elif value is not None:
            shown[key] = value
    return shown
