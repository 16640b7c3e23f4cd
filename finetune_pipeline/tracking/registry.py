"""MLflow's model registry: versions with tags and a description, and aliases that point to a version.

    version = register("support_tickets", run_id, "adapter", {"adapter": "4be0…"}, "description")   # 3
    set_alias("support_tickets", "champion", version)

Every function raises StorageError when MLflow is down.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune_pipeline.errors import StorageError
from finetune_pipeline.tracking.client import connect, mlflow_call, none_if_missing, server


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


@mlflow_call("delete an alias")
def delete_alias(name: str, alias: str) -> None:
    """Delete an alias if it exists."""
    if alias_version(name, alias) is not None:
        connect().MlflowClient().delete_registered_model_alias(name, alias)


@mlflow_call("look up an alias")
def alias_version(name: str, alias: str) -> int | None:
    """The version an alias points to, or None (no such alias, no such model)."""
    models = connect().MlflowClient().search_registered_models(f"name = '{name}'")
    version = models[0].aliases.get(alias) if models else None
    return int(version) if version is not None else None


@mlflow_call("read the tags of a version")
def version_tags(name: str, version: int) -> dict[str, str]:
    """The tags a version was registered with. StorageError when there is no such version."""
    registered = none_if_missing(lambda: connect().MlflowClient().get_model_version(name, str(version)))
    if registered is None:
        raise StorageError(
            f"MLflow at {server()} has no version {version} of {name}", "see `finetune status` for the versions"
        )
    return dict(registered.tags)
