"""Paths and artifacts of the tasks. An artifact is an immutable folder; it exists once its manifest is written.

    <data>/<task>/task.yaml, raw/                    declaration and source files; never written by the pipeline
    <data>/<task>/review/                            the reviewers' verdicts, committed like the above
    <data>/<task>/02_clean/clean_examples/3fa9…/     a finished artifact: its files and manifest.json
    <data>/<task>/02_clean/clean_examples/current    the key of the current artifact
    <home>/                                          models, MLflow, Dagster, logs of this machine

A key is the hash of what an artifact is made from (inputs, declaration, code version): the same work is not done twice.
A content hash is the hash of its files; verdicts and lineage refer to it.
"""

from finetune_pipeline.store.files import LOCAL, Location, is_full, sha256_file, storage_error, write_atomic
from finetune_pipeline.store.gates import gate_hint, require_verdict
from finetune_pipeline.store.locks import machine_lock
from finetune_pipeline.store.manifest import MANIFEST
from finetune_pipeline.store.paths import (
    STAGE_OF,
    STAGES,
    dagster_home,
    data_root,
    home,
    mlflow_artifacts,
    mlflow_uri,
    models_folder,
    task_names,
    traffic_folder,
)
from finetune_pipeline.store.stage import StageContext, StageResult
from finetune_pipeline.store.task_store import TaskStore

__all__ = [
    "LOCAL",
    "MANIFEST",
    "STAGES",
    "STAGE_OF",
    "Location",
    "StageContext",
    "StageResult",
    "TaskStore",
    "dagster_home",
    "data_root",
    "gate_hint",
    "home",
    "is_full",
    "machine_lock",
    "mlflow_artifacts",
    "mlflow_uri",
    "models_folder",
    "require_verdict",
    "sha256_file",
    "storage_error",
    "task_names",
    "traffic_folder",
    "write_atomic",
]
