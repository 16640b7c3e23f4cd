"""Folders of the project: the tasks under the data root, and the files of this machine under the home folder.

    <data>/<task>/02_clean/clean_examples/3fa9…/     one artifact: two digits and the stage, the asset, the key
    <data>/<task>/review/                            the reviewers' verdicts
    <home>/models  <home>/mlflow.db  <home>/traffic  files of this machine

`<data>` is $FINETUNE_DATA (default: ./data), a folder or any fsspec URL; `<home>` is $FINETUNE_HOME (default:
./.finetune), always local.
"""

from __future__ import annotations

import os
from pathlib import Path

from upath import UPath

from finetune_pipeline.config import TASK_NAME
from finetune_pipeline.errors import reading
from finetune_pipeline.store.files import LOCAL

# The stages in the order in which an example passes through them, each with its assets. A stage is named as its
# package, and its folder is that name after two digits.
STAGES: dict[str, tuple[str, ...]] = {
    "models": ("base_model",),
    "ingest": ("raw_examples",),
    "clean": ("clean_examples",),
    "suitability": ("suitability_report",),
    "quality": ("data_quality",),
    "review": ("review_sample", "expert_review"),
    "split": ("data_split",),
    "baseline": ("baseline_report",),
    "train": ("training_plan", "training_search", "adapter"),
    "evaluate": ("eval_report",),
    "release": ("release_decision", "registered_model"),
    "serve": ("deployed_endpoint",),
    "monitor": ("traffic_report",),
}
STAGE_OF = {asset: stage for stage, assets in STAGES.items() for asset in assets}


def stage_folder(stage: str) -> str:
    """The name of a stage's folder in a task, such as "02_clean". ValueError when there is no such stage."""
    return f"{list(STAGES).index(stage):02}_{stage}"


def data_root() -> UPath:
    """$FINETUNE_DATA, the folder (or object store) of all tasks; default: ./data."""
    return UPath(os.environ.get("FINETUNE_DATA") or Path.cwd() / "data")


def home() -> Path:
    """$FINETUNE_HOME, the folder of this machine: models, MLflow, Dagster, logs, scratch; default: ./.finetune."""
    return Path(os.environ.get("FINETUNE_HOME") or Path.cwd() / ".finetune").absolute()


def models_folder() -> Path:
    """Downloaded and converted base models."""
    return home() / "models"


def mlflow_uri() -> str:
    """$MLFLOW_TRACKING_URI, else SQLite in the home folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def mlflow_artifacts() -> Path:
    """The artifact store of our own MLflow server."""
    return home() / "mlartifacts"


def dagster_home() -> Path:
    """$DAGSTER_HOME, else a folder in the home folder."""
    return Path(os.environ.get("DAGSTER_HOME") or home() / "dagster")


def traffic_folder(task: str) -> Path:
    """The traffic log of a task, written by the endpoint: one JSONL file per day."""
    return home() / "traffic" / task


def task_names() -> list[str]:
    """Every folder of the data root with a task.yaml, sorted. Also a folder that cannot be read (no permission, a
    broken link) if its name is valid for a task (`lost+found` and an editor's `.#README.md` are not): opening it then
    reports the error. StorageError when the data root cannot be read."""
    root = data_root()
    with reading(root):
        folders = list(root.iterdir()) if root.exists() or _is_link(root) else []
    return sorted(folder.name for folder in folders if _may_be_task(folder))


def _may_be_task(folder: UPath) -> bool:
    named = bool(TASK_NAME.fullmatch(folder.name))
    try:
        (folder / "task.yaml").stat()
    except FileNotFoundError:
        return _is_link(folder / "task.yaml") or (named and _is_link(folder) and not folder.exists())
    except NotADirectoryError:
        return False  # a file beside the tasks
    except OSError:
        return named
    return True


def _is_link(path: UPath) -> bool:
    return path.protocol in LOCAL and Path(str(path)).is_symlink()
