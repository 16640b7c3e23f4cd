"""MLflow's model registry: versions with tags and a description, and aliases that point to a version.

    version = register("support_tickets", run_id, "adapter", {"adapter": "4be0…"}, "description")   # 3
    set_alias("support_tickets", "champion", version)

Every function raises StorageError when MLflow is down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_pipeline.tracking.client import connect, mlflow_call


@mlflow_call("register a model")
def register(
    name: str, run_id: str, artifact_path: str, tags: Mapping[str, str], description: str, folder: Path | None = None
) -> int:
    """Make the run's files under `artifact_path` the next version of the model `name`; the version's number.

    What the run lacks of the files in `folder` is logged first: all of them where MLflow was down at its end, the rest
    where their upload broke off.
    """
    client = connect().MlflowClient()
    if folder is not None:
        _log_missing(client, run_id, artifact_path, folder)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
    version = client.create_model_version(name, source, run_id, tags=dict(tags), description=description)
    return int(version.version)


def _log_missing(client: Any, run_id: str, artifact_path: str, folder: Path) -> None:
    """Log the files of `folder` that the run does not have under `artifact_path`, or has in another size."""
    logged = dict(_logged(client, run_id, artifact_path))
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = f"{artifact_path}/{file.relative_to(folder).as_posix()}"
        if name not in logged or logged[name] not in (None, file.stat().st_size):
            client.log_artifact(run_id, str(file), name.rpartition("/")[0])
    if client.get_run(run_id).info.status != "FINISHED":
        client.set_terminated(run_id, "FINISHED")


def _logged(client: Any, run_id: str, path: str) -> Iterator[tuple[str, int | None]]:
    """The files of the run under `path`, and their sizes in bytes as far as the artifact store knows them."""
    for entry in client.list_artifacts(run_id, path):
        if entry.is_dir:
            yield from _logged(client, run_id, entry.path)
        else:
            yield entry.path, entry.file_size


@mlflow_call("list the versions of a model")
def find_version(name: str, tag: str, value: str) -> int | None:
    """The newest version of the model `name` with this tag, or None (no such version, no such model)."""
    versions = connect().MlflowClient().search_model_versions(f"name = '{name}'")
    return max((int(version.version) for version in versions if version.tags.get(tag) == value), default=None)


@mlflow_call("set an alias")
def set_alias(name: str, alias: str, version: int) -> None:
    connect().MlflowClient().set_registered_model_alias(name, alias, str(version))
