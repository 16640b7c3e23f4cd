"""The only place that knows paths. Artifacts are immutable folders; a manifest written last makes one exist.

    <data>/<task>/task.yaml, raw/                    what people declare and bring (never written here)
    <data>/<task>/review/                            what people said of the rows: their work, committed like the above
    <data>/<task>/02_clean/clean_examples/3fa9…/     one finished artifact: its files and manifest.json
    <data>/<task>/02_clean/clean_examples/current    the key of the one that counts now
    <home>/                                          models, MLflow, Dagster, logs: this machine's own

A key is the hash of what an artifact is made from (inputs, declaration, code version), so that the same work is never
done twice; a content hash is the hash of its files, which verdicts and lineage refer to.
"""

from finetune_pipeline.store.files import LOCAL, Location, is_full, sha256_file, storage_error, write_atomic
from finetune_pipeline.store.gates import gate_hint, require_verdict
from finetune_pipeline.store.locks import machine_lock
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
from finetune_pipeline.store.task_store import MANIFEST, TaskStore

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
