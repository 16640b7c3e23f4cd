"""MLflow's model registry: versions with tags and a description, and aliases that point to a version.

    version = register("support_tickets", run_id, "adapter", {"adapter": "4be0…"}, "description")   # 3
    set_alias("support_tickets", "champion", version)

Every function raises StorageError when MLflow is down.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune_pipeline.tracking.client import connect, mlflow_call


@mlflow_call("register a model")
def register(
    name: str, run_id: str, artifact_path: str, tags: Mapping[str, str], description: str, folder: Path | None = None
) -> int:
    """Make the run's files under `artifact_path` the next version of the model `name`; the version's number.

    Where the run has no such files (MLflow was down at its end), those in `folder` are logged now.
    """
    client = connect().MlflowClient()
    if folder is not None and not client.list_artifacts(run_id, artifact_path):
        client.log_artifacts(run_id, str(folder), artifact_path)
        client.set_terminated(run_id, "FINISHED")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
    version = client.create_model_version(name, source, run_id, tags=dict(tags), description=description)
    return int(version.version)


@mlflow_call("list the versions of a model")
def find_version(name: str, tag: str, value: str) -> int | None:
    """The newest version of the model `name` with this tag, or None (no such version, no such model)."""
    versions = connect().MlflowClient().search_model_versions(f"name = '{name}'")
    return max((int(version.version) for version in versions if version.tags.get(tag) == value), default=None)


@mlflow_call("set an alias")
def set_alias(name: str, alias: str, version: int) -> None:
    connect().MlflowClient().set_registered_model_alias(name, alias, str(version))
